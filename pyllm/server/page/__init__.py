"""The page for people: chats, and the token inspector."""
