"""Sign-in to the pages by an OpenID provider."""
