"""Commands of the simulator: say what there is, and serve it to other programs as if it were real."""

from __future__ import annotations

import sys
from contextlib import suppress
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from firmware_iface.errors import WrongUsage

if TYPE_CHECKING:
    from calibration.progress import Console
    from sim.usb_link import Server
    from sim.usb_model import UsbDevice

Json = Annotated[bool, typer.Option("--json", help="Print the figures as one JSON object.")]


class Way(StrEnum):
    """How another program reaches the simulated detector."""

    USBIP = "usbip"
    USBREDIR = "usbredir"
    MERLIN = "merlin"


def register(app: typer.Typer) -> None:
    """Add the commands of this package, under `mpxct sim`."""
    group = typer.Typer(help="The simulated instrument: what there is, and serving it to other programs.")
    group.command("list")(list_instruments)
    group.command("phantom")(describe_phantom)
    group.command()(serve)
    app.add_typer(group, name="sim", no_args_is_help=True)


def list_instruments(ctx: typer.Context, json: Json = False) -> None:
    """Say which simulated instruments there are, and what their addresses may ask for.

    Example: mpxct sim list
    """
    from sim.faults import FAULT_KEYS
    from sim.instrument import BOARD_OPTIONS, INSTRUMENT_OPTIONS, INSTRUMENTS

    console: Console = ctx.obj
    kinds = {"instrument": INSTRUMENT_OPTIONS, "board": BOARD_OPTIONS}
    allowed = {kind: {key: option.allowed for key, option in options.items()} for kind, options in kinds.items()}
    lines = [f"sim:{name}" for name in INSTRUMENTS]
    lines += [f"{kind}: {', '.join(f'{key}={text}' for key, text in of.items())}" for kind, of in allowed.items()]
    lines.append(f"faults: {', '.join(FAULT_KEYS)}")
    lines.append(f"for example sim:{INSTRUMENTS[0]}?seed=2&drop=17")
    figures = {"instruments": list(INSTRUMENTS), "options": allowed, "faults": list(FAULT_KEYS)}
    console.emit(figures, "\n".join(lines), as_json=json)


def describe_phantom(
    ctx: typer.Context,
    name: Annotated[str, typer.Argument(help="As the sample changer calls it.")],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="TOML file to write. Default: print it.")
    ] = None,
    volume_materials: Annotated[
        str,
        typer.Option("--materials", help="Only vials of these, a,b,… and of water. Default: all."),
    ] = "",
) -> None:
    """Write what the labels of a phantom state, as mpxct quality and mpxct decompose --vials read it.

    Example: mpxct sim phantom mars-multi -o mars-multi.toml
    """
    from sim.gantry import Gantry
    from sim.phantom import described

    console: Console = ctx.obj
    gantry = Gantry()
    answer = gantry.line(f"SAMP {name}") or ""
    if answer.startswith("ERR") or not gantry.inserts:
        raise WrongUsage(
            answer.removeprefix("ERR ") if answer.startswith("ERR") else f"the sample {name} has no labelled vials",
            hint="those with vials: vials, mars-multi, mars-raja",
        )
    wanted = {each.strip() for each in volume_materials.split(",") if each.strip()}
    text = described(name, [i for i in gantry.inserts if not wanted or i.material in wanted | {"water"}])
    if output is not None:
        output.write_text(text, encoding="utf-8")
    console.emit({}, text.rstrip() if output is None else str(output), as_json=False)


def serve(
    ctx: typer.Context,
    address: Annotated[str, typer.Argument(help="The instrument, as after sim: in a URL.")] = "demo",
    usbip: Annotated[bool, typer.Option("--usbip", help="As a USB device for a kernel with vhci-hcd.")] = False,
    usbredir: Annotated[bool, typer.Option("--usbredir", help="As a USB device for a QEMU machine.")] = False,
    merlin: Annotated[bool, typer.Option("--merlin", help="As a Merlin readout for Merlin clients.")] = False,
    port: Annotated[
        int | None,
        typer.Option(min=0, max=65535, help="TCP port; 0 for any that is free. Merlin data go by the next one."),
    ] = None,
) -> None:
    """Serve a simulated instrument to programs on this computer, until Ctrl-C.

    A served USB device is pulled by a line `unplug` on standard input, and put back by `plug`.

    Example: mpxct sim serve --usbip
    """
    console: Console = ctx.obj
    asked = [way for way, is_asked in zip(Way, (usbip, usbredir, merlin), strict=True) if is_asked]
    if len(asked) != 1:
        raise WrongUsage(
            f"asked for {' and '.join(f'--{way}' for way in asked) or 'no way to serve'}; allowed: one of "
            + ", ".join(f"--{way}" for way in Way),
            hint="a device is on one bus at a time; serve another instrument for the other",
        )
    if asked[0] is Way.MERLIN:
        _serve_merlin(console, address, port)
    else:
        _serve_usb(console, address, asked[0], port)


def _serve_merlin(console: Console, address: str, port: int | None) -> None:
    from sim.merlin_server import COMMAND_PORT
    from sim.merlin_server import serve as serve_until_stopped

    command_port = COMMAND_PORT if port is None else port
    data_port = command_port + 1 if command_port else 0
    serve_until_stopped(
        address,
        command_port=command_port,
        data_port=data_port,
        on_ready=lambda *ports: console.say(
            f"serving {address} as a Merlin on ports {ports[0]} and {ports[1]}; Ctrl-C ends it"
        ),
    )


def _serve_usb(console: Console, address: str, way: Way, port: int | None) -> None:
    from sim.instrument import simulated_device

    device = simulated_device(address)
    with _start(device, way, port) as server, suppress(KeyboardInterrupt):
        console.say(f"serving {address} by {way} on port {server.port}; Ctrl-C ends it")
        console.say(_how_to_attach(way, server.port))
        for line in sys.stdin:
            _obey(console, device, line.strip())
        server.wait()  # standard input ended: there is nobody to type, but the device is still wanted


def _start(device: UsbDevice, way: Way, port: int | None) -> Server:
    from sim import usbip, usbredir

    try:
        if way is Way.USBIP:
            return usbip.serve_usbip(device, usbip.PORT if port is None else port)
        return usbredir.serve_usbredir(device, usbredir.PORT if port is None else port)
    except OSError as error:
        raise WrongUsage(f"cannot listen for {way}: {error.strerror}", hint="choose another --port") from error


def _how_to_attach(way: Way, port: int) -> str:
    if way is Way.USBIP:
        return f"attach it: modprobe vhci-hcd; usbip --tcp-port {port} attach --remote 127.0.0.1 --busid 1-1"
    return (
        f"give QEMU: -device qemu-xhci -chardev socket,id=mpxct,host=127.0.0.1,port={port} "
        "-device usb-redir,chardev=mpxct"
    )


def _obey(console: Console, device: UsbDevice, word: str) -> None:
    if word == "unplug":
        device.unplug()
    elif word == "plug":
        device.plug()
    elif word:
        console.say(f"{word!r} is not known; allowed: unplug, plug")
        return
    if word:
        console.say(f"the device is {'off' if device.is_gone else 'on'} the bus")
