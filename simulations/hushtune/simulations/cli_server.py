"""The command ``hushtune server``: a coordinator's end of a federation between machines."""

from __future__ import annotations

import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from hushtune.common.errors import ConfigError
from hushtune.common.json_text import json_text

server_app = typer.Typer(
    help="Coordinate a federation of sites on machines of their own.", no_args_is_help=True
)

Folder = Annotated[Path, typer.Argument(metavar="DIR", help="the coordinator's folder")]
AsJson = Annotated[bool, typer.Option("--json", help="the last line printed is JSON")]


@server_app.command("init")
def init(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="a new folder")],
    name: Annotated[str, typer.Option("--name", help="of the federation")],
    address: Annotated[
        str, typer.Option("--address", metavar="HOST:PORT", help="where sites reach the server")
    ],
    listen: Annotated[
        str | None,
        typer.Option("--listen", metavar="IP:PORT", help="where it listens, if that is another"),
    ] = None,
    local_port: Annotated[
        int | None, typer.Option("--local-port", help="for this machine's own commands")
    ] = None,
    certificate: Annotated[
        Path | None, typer.Option("--certificate", help="a given TLS certificate, with its chain")
    ] = None,
    key: Annotated[Path | None, typer.Option("--key", help="of that certificate")] = None,
    authority: Annotated[
        Path | None, typer.Option("--authority", help="certificate of who signed it, PEM")
    ] = None,
) -> None:
    """Make a coordinator's folder: keys, certificates, and federation.toml for the sites."""
    from hushtune.common.deployment import Invitation
    from hushtune.server.deployment.certificates import Certificates
    from hushtune.server.deployment.home import init_home

    given = None
    if certificate is not None and key is not None and authority is not None:
        given = Certificates(authority, certificate, key)
    elif (certificate, key, authority) != (None, None, None):
        raise ConfigError(
            "of a given certificate all three files are needed",
            expected="--certificate FILE --key FILE --authority FILE, or none of them",
        )
    home = init_home(
        folder,
        name=name,
        address=address,
        listen=listen,
        local_port=local_port,
        given=given,
        now=datetime.now(UTC),
    )
    _say(f"the coordinator's folder is {home.folder}; keep keys/ and tls/ to yourself")
    _say(f"give {home.invitation} to each site; nothing in it is secret. Its fingerprint, to be")
    _say("compared by telephone with what `hushtune site init` prints:")
    _say(f"  {Invitation.read(home.invitation).fingerprint}")
    _say(f"then: hushtune server start {home.folder}")


@server_app.command("start")
def start(
    folder: Folder,
    page: Annotated[
        int | None,
        typer.Option("--page", metavar="PORT", help="a status page on 127.0.0.1, and /metrics"),
    ] = None,
) -> None:
    """Run the server in the foreground until Ctrl-C or SIGTERM; its log is in flower/."""
    import time

    from hushtune.server.deployment.home import open_home
    from hushtune.server.deployment.link import prepare_environment, serve
    from hushtune.server.deployment.live import ServerView
    from hushtune.server.deployment.status import federation_status
    from hushtune.server.deployment.watch import Watch

    home = open_home(folder)
    prepare_environment(home)
    console = Console()
    views: list[ServerView] = []

    def show(watch: Watch) -> None:
        def status() -> dict[str, Any]:
            return federation_status(home, watch.snapshot(now=time.time()))

        views.append(ServerView(console, status))
        views[0].start()

    try:
        live = console.is_terminal
        serve(home, page_port=page, quiet=live, on_ready=show if live else None)
    finally:
        for view in views:
            view.stop()


@server_app.command("enrol")
def enrol(
    folder: Folder,
    cards: Annotated[
        list[Path], typer.Argument(metavar="SITE.pub...", help="what `hushtune site init` wrote")
    ],
) -> None:
    """Let sites in, by the cards that they have given; the server must run."""
    from hushtune.common.deployment import SiteCard
    from hushtune.server.deployment import enrol as enrolling
    from hushtune.server.deployment.home import open_home

    home = open_home(folder)
    known = enrolling.enrolled_sites(home)
    for card in [SiteCard.read(path) for path in cards]:
        there = known.get(card.name)
        if there is not None and there.card == card:
            _say(f"{card.name} is enrolled already, with these keys")
            continue
        site = enrolling.enrol(home, card)
        _say(f"{card.name} is enrolled. Compare its fingerprint with the site, by telephone:")
        _say(f"  {site.card.fingerprint}")


@server_app.command("revoke")
def revoke(
    folder: Folder, name: Annotated[str, typer.Argument(metavar="NAME", help="of the site")]
) -> None:
    """Let a site in no more."""
    from hushtune.server.deployment import enrol as enrolling
    from hushtune.server.deployment.home import open_home

    enrolling.revoke(open_home(folder), name)
    _say(f"{name} is let in no more")


@server_app.command("run")
def run(
    folder: Folder,
    config: Annotated[
        Path | None,
        typer.Argument(metavar="[CONFIG]", help="a TOML file; with --resume it may be left out"),
    ] = None,
    name: Annotated[
        str | None, typer.Option("--name", help="of the run; else that of the file")
    ] = None,
    resume: Annotated[
        bool,
        typer.Option(
            "--resume",
            help="go on with a run that was stopped; hand one that has ended to sites that lack it",
        ),
    ] = False,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="SECTION.KEY=VALUE", help="one setting"),
    ] = None,
    answer_seconds: Annotated[
        float, typer.Option(min=1, help="how long a site may take for a round")
    ] = 3600.0,
    connect_seconds: Annotated[
        float,
        typer.Option(min=0, help="how long a round, and the end, wait for sites that are away"),
    ] = 120.0,
    as_json: AsJson = False,
) -> None:
    """Start a run at the running server and follow it; Ctrl-C stops it, --resume goes on."""
    from hushtune.server.deployment.handed_over import again_command, handed_over
    from hushtune.server.deployment.home import open_home
    from hushtune.server.deployment.launch import launch, load_sites_config, plan_launch
    from hushtune.server.deployment.live import RunView

    home = open_home(folder)
    settings = None if config is None else load_sites_config(config, set_ or [])
    if name is None and config is None:
        raise ConfigError(
            "a run needs a configuration, or the name of one to resume",
            expected="CONFIG, or --resume --name NAME",
            remedy=f"hushtune server run {folder} run.toml",
        )
    plan = plan_launch(
        home,
        settings,
        name=name or (config.stem if config is not None else ""),
        resume=resume,
        answer_seconds=answer_seconds,
        connect_seconds=connect_seconds,
    )
    console = Console(stderr=as_json)
    with RunView(console) as view:
        ended = launch(home, plan, on_status=view.update)
    found = handed_over(plan.folder, tuple(plan.config.data.public_sizes))
    lines = found.words(again=again_command(plan.folder))
    for line in (f"finished: {plan.folder}", *lines):
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    told = {"handed_over": list(found.signed), "without_receipt": dict(found.missing)}
    _print_json(ended | told, as_json)


@server_app.command("status")
def status(folder: Folder, as_json: AsJson = False) -> None:
    """How the server, its sites and its newest run are doing."""
    from hushtune.server.deployment.control import link_state
    from hushtune.server.deployment.home import open_home
    from hushtune.server.deployment.live import show_status
    from hushtune.server.deployment.status import federation_status

    home = open_home(folder)
    found = federation_status(home, link_state(home))
    Console(stderr=as_json).print(show_status(found))
    _print_json(found, as_json)


@server_app.command("certificate")
def certificate(
    folder: Folder,
    renew: Annotated[bool, typer.Option("--renew", help="make a new one, for a year")] = False,
) -> None:
    """Check the server's certificate, or make a new one; a running server takes it up itself."""
    from hushtune.server.deployment import home as homes
    from hushtune.server.deployment.certificates import check_certificates, days_left

    home, now = homes.open_home(folder), datetime.now(UTC)
    if renew:
        until = homes.renew(home, now=now)
    else:
        until = check_certificates(home.certificates, host=home.host, now=now)
    _say(f"valid until {until:%Y-%m-%d}, {days_left(until, now=now)} more days")


def _say(text: str) -> None:
    Console().print(text, markup=False, highlight=False, soft_wrap=True)


def _print_json(value: object, wanted: bool) -> None:
    if wanted:
        sys.stdout.write(json_text(value) + "\n")
