"""Answer questions about documents over HTTP: `python -m jobs.serve [option …] [key=value …]` (`make serve`).

    python -m jobs.serve model=models/smollm2 serve.replicas.max=2
    python -m jobs.serve preset=serve_tiny

Serves OpenAI's interface (/v1/files, /v1/responses, /v1/chat/completions, /v1/models), MCP at /mcp and a page at /. The
first start makes a key and prints it once. Runs on the cluster that RAY_ADDRESS names, from its head node; without
RAY_ADDRESS it joins your cluster on this machine, or starts Ray. Ctrl-C ends it. docs/serving.md has the rest.

Options:
  --new-key NAME     make a key, print it, and end
  --keys             print the names of the keys, and end
  --remove-key NAME  remove a key, also of a server that runs, and end
  --mcp …            serve one MCP client on standard input and output instead (docs/mcp.md)
model=PATH is short for model.path=PATH.
"""

import logging
import socket
import sys
import threading

from jobs.support.driver import EXIT_STATUS, asks_for_help, show_help, start_ray, stop_ray
from jobs.support.inputs import check_model
from jobs.support.noise import mute_workers
from jobs.support.stop_signals import StopSignals
from pipeline.errors import ConfigError, DataError, last_line
from pipeline.serving.config import ServeConfig, load_serve_config, model_name, serve_folder, serving_engine_config
from pipeline.serving.keys import Keys

LOOPBACK = ("127.0.0.1", "localhost", "::1")
FIRST_KEY = "default"
WITH_NAME = ("--new-key", "--remove-key")


def main(arguments: list[str]) -> int:
    """Run the job; return the exit status: 0 ended, 1 failed, 2 wrong arguments, 130 interrupted before it began."""
    if arguments[:1] == ["--mcp"]:
        from jobs.support.mcp_stdio import main as serve_mcp

        return serve_mcp(arguments[1:])
    if asks_for_help(arguments):
        return show_help(__doc__, ServeConfig)
    try:
        command, name, settings = split_arguments(arguments)
        if command:
            change_keys(command, name, settings)
            return 0
        config = load_serve_config(settings)
        check_model(serving_engine_config(config), ["memory", "direct", "concat"])
        check_port(config.serve.host, config.serve.port)
        return serve_until_stopped(config)
    except (ConfigError, DataError) as error:
        print(f"configuration error:\n{error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return EXIT_STATUS["interrupted"]


def split_arguments(arguments: list[str]) -> tuple[str, str, list[str]]:
    """The command about keys, if there is one, its name, and the settings.

    Raises:
        ConfigError: an option is unknown, or lacks its name.
    """
    command = name = ""
    settings: list[str] = []
    left = list(arguments)
    while left:
        argument = left.pop(0)
        flag, equals, value = argument.partition("=")
        if flag in (*WITH_NAME, "--keys"):
            if command:
                raise ConfigError(f"{command} and {flag} are two commands")
            if flag in WITH_NAME and not equals and not left:
                raise ConfigError(f"{flag} needs a name")
            command, name = flag, value if equals or flag == "--keys" else left.pop(0)
        elif flag == "model" and equals:
            settings.append(f"model.path={value}")
        elif not equals or flag.startswith("-"):
            raise ConfigError(f"unknown argument {argument}; --help lists options and keys")
        else:
            settings.append(argument)
    return command, name, settings


def change_keys(command: str, name: str, settings: list[str]) -> None:
    """Make, list or remove keys. Raises `ConfigError` if that cannot be done."""
    from pipeline.config import load_config

    keys = Keys(serve_folder(load_config(settings, ServeConfig)))
    if command == "--new-key":
        print(keys.make(name))
        print("· this key is shown now and never again", file=sys.stderr)
    elif command == "--remove-key":
        keys.remove(name)
        print(f"· removed {name}", file=sys.stderr)
    else:
        print("\n".join(keys.names()))


def check_port(host: str, port: int) -> None:
    """Raises `ConfigError` if nobody could listen there."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((host, port))
        except OSError as error:
            raise ConfigError(
                f"serve.host={host} serve.port={port} cannot be listened on ({error.strerror}); choose another port"
            ) from None


def serve_until_stopped(config: ServeConfig) -> int:
    """Serve until SIGINT or SIGTERM; return the exit status."""
    stopped = threading.Event()
    start_ray()
    try:
        from ray import serve

        from actors.serving.frontend import APPLICATION, application

        logging.getLogger("ray.serve").setLevel(logging.WARNING)
        status = serve.status()
        if status.applications or status.proxies:
            raise ConfigError(
                "Ray Serve runs on this cluster already, with its own address; end it (`serve shutdown`), or start "
                "a Ray for this server with RAY_ADDRESS=local"
            )
        with StopSignals() as signals:  # not before Ray has set its own handler
            signals.add(stopped.set)
            quiet = {"log_level": "WARNING", "enable_access_log": False}
            host, port = config.serve.host, config.serve.port
            try:
                serve.start("HeadOnly", {"host": host, "port": port}, logging_config=quiet)
                print(f"· starting {config.serve.replicas.min} replica(s) of vLLM with {config.model.path}", flush=True)
                serve.run(application(config), name=APPLICATION, logging_config=quiet)
                announce(config)
                while not stopped.wait(1.0):
                    pass
                print("· ending", flush=True)
                mute_workers()
            except RuntimeError as error:  # Ray Serve's own, when replicas do not start
                print(f"the server did not start: {last_line(error)}", file=sys.stderr)
                return 1
            finally:
                serve.shutdown()
    finally:
        stop_ray()
    return 0


def announce(config: ServeConfig) -> None:
    """Print the addresses, and the key if there was none before."""
    host, keys = config.serve.host, Keys(serve_folder(config))
    shown = f"[{host}]" if ":" in host else "127.0.0.1" if host == "0.0.0.0" else host
    address = f"http://{shown}:{config.serve.port}"
    print(f"· {model_name(config)} answers at {address}/v1, its page is {address}/", flush=True)
    if not keys.names():
        key = keys.make(FIRST_KEY)
        print(f"· key {key} (shown now and never again); with it, the page is {address}/#key={key}", flush=True)
    else:
        print(f"· keys: {', '.join(keys.names())}; --new-key NAME makes another", flush=True)
    if host not in LOOPBACK:
        print(
            "· warning: other machines can reach this server, and keys and documents travel unencrypted: put a proxy "
            "with TLS before it",
            flush=True,
        )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
