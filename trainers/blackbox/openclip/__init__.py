"""The local model: open_clip's, with exact short ways through its towers."""
