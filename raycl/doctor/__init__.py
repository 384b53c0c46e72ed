"""What a run needs of this machine and of the places it reads and writes, looked at before anything is started."""
