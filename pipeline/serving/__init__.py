"""What a server of questions keeps and says: files, keys, readings, OpenAI's objects, the page."""
