"""Data as people have it -> conversations: places, file formats, shapes of rows."""
