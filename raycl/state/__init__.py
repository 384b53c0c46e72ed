"""The stage state on disk: content keys, parts and the store. The only room that touches stage files."""
