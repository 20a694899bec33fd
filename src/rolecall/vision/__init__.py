"""Tasks for pictures on top of the gateway: captions, keywords, tags, texts; one picture or many."""
