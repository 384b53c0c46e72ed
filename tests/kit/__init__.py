"""What tests share: tiny models, toy tasks, commands, cases."""
