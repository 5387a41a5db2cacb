"""The address of the one-time link that signs a browser in."""


def sign_in_url(url: str, token: str) -> str:
    """The link that signs its bearer in, once. `url` is where the service is reached."""
    return f"{url.rstrip('/')}/sign-in?token={token}"
