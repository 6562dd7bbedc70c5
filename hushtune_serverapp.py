"""What Flower loads at the server: the installed package's ServerApp."""

from hushtune.server.app import app as _app

app = _app
