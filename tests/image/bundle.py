"""Checks what an image says of itself, and locks the container that umoci made of it down, for tests/image/run.

    bundle.py IMAGE.json AGAIN.json BUNDLE SETTINGS STATE VERSION     prints the command of the image's HEALTHCHECK, a word a line
    bundle.py --process PID                                checks as what a process really runs
"""

import json
import pathlib
import sys

USER = 65532
PROGRAM = "/usr/local/bin/alipayplus-cancel"
FOLDER = "/var/lib/alipayplus-cancel"


def expect(what, found, due):
    if found != due:
        sys.exit(f"{what}: {found!r}, and should be {due!r}")


def image(described, again, version):
    """What `buildah inspect` tells of two builds; returns the command of the health check."""
    # the form that keeps HEALTHCHECK has the name of the build's container in it, so the images' own ids do differ
    expect("layers of the second build", again["OCIv1"]["rootfs"], described["OCIv1"]["rootfs"])
    config = described["Docker"]["config"]
    expect("USER", config["User"], f"{USER}:{USER}")
    expect("ENTRYPOINT", config["Entrypoint"], [PROGRAM])
    expect("CMD", config["Cmd"], ["serve", "--config", "/etc/alipayplus-cancel/alipayplus-cancel.toml"])
    expect("EXPOSE", sorted(config["ExposedPorts"]), ["50051/tcp", "8080/tcp", "9090/tcp"])
    kind, *command = config["Healthcheck"]["Test"]
    expect("HEALTHCHECK", kind, "CMD")
    labels = {name.removeprefix("org.opencontainers.image."): text for name, text in config["Labels"].items()}
    expect("label version", labels["version"], version)
    expect("label revision", labels["revision"], "0123456789ab")
    expect("label licenses", labels["licenses"], "Apache-2.0")
    return command


def lock_down(bundle, settings, state):
    """The files' owners, then config.json as a restricted pod would have it."""
    root = bundle / "rootfs"
    expect("owner of the state's folder", (root / FOLDER.lstrip("/")).stat().st_uid, USER)
    for path in [root / PROGRAM.lstrip("/"), root / "var", root / "var/lib", root / "usr"]:
        expect(f"owner of {path.relative_to(root)}", path.stat().st_uid, 0)
    writable = [str(path) for path in root.rglob("*") if not path.is_symlink() and path.stat().st_mode & 0o6002]
    expect("set-user-id or world-writable files", writable, [])
    file = bundle / "config.json"
    config = json.loads(file.read_text())
    process = config["process"]
    expect("uid", process["user"], {"uid": USER, "gid": USER})
    process["terminal"] = False
    process["noNewPrivileges"] = True
    process["capabilities"] = {kind: [] for kind in process["capabilities"]}
    process["rlimits"] = []
    config["root"]["readonly"] = True
    bind = lambda source, at, how: {"type": "bind", "source": source, "destination": at, "options": ["bind", how]}
    config["mounts"] += [
        bind(settings, "/etc/alipayplus-cancel", "ro"),
        bind(f"{settings}/hosts", "/etc/hosts", "ro"),
        bind(state, FOLDER, "rw"),
    ]
    file.write_text(json.dumps(config))


def process(pid):
    fields = dict(line.split(":\t", 1) for line in pathlib.Path(f"/proc/{pid}/status").read_text().splitlines())
    expect("uids", fields["Uid"].split(), [str(USER)] * 4)
    expect("effective capabilities", int(fields["CapEff"], 16), 0)
    expect("bounding capabilities", int(fields["CapBnd"], 16), 0)
    expect("NoNewPrivs", fields["NoNewPrivs"].strip(), "1")
    root = [line.split() for line in pathlib.Path(f"/proc/{pid}/mounts").read_text().splitlines()]
    options = next(options for _, at, _, options, *_ in root if at == "/")
    expect("root", options.split(",")[0], "ro")
    print(f"image: process 1 is user {USER}, no capability, no new privileges, root read-only")


match sys.argv[1:]:
    case ["--process", pid]:
        process(pid)
    case [described, again, bundle, settings, state, version]:
        builds = [json.loads(pathlib.Path(build).read_text()) for build in (described, again)]
        command = image(*builds, version)
        lock_down(pathlib.Path(bundle), settings, state)
        print("\n".join(command))
    case _:
        sys.exit(__doc__)
