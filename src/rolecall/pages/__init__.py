"""The server's pages in the browser: one layout and one policy for what several rooms show."""
