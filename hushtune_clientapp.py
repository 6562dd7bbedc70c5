"""What Flower loads at a site: the installed package's ClientApp."""

from hushtune.client.app import app as _app

app = _app
