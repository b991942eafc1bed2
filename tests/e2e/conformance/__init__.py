"""A running `aviary serve` says what OpenAI's API says: a package, so that all of it shares one server."""
