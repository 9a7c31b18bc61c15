"""Becomes one container, as a runtime would make it: started by cluster.py with a description as JSON on standard input.

    {"root": DIR, "readonly": true, "mounts": [[SOURCE, AT, READONLY]…], "uid": 65532, "gid": 65532, "groups": [65532],
     "argv": […], "env": {…}}

A mount namespace of its own, the image as root, the volumes in their places, a user that is not root, no capability, no
new privileges. Not here: seccomp and memory limits.
"""

import ctypes
import json
import os
import sys

libc = ctypes.CDLL(None, use_errno=True)
CLONE_NEWNS = 0x00020000
MS_RDONLY, MS_REMOUNT, MS_BIND, MS_REC, MS_PRIVATE = 1, 32, 4096, 16384, 1 << 18
PR_SET_NO_NEW_PRIVS, PR_CAPBSET_DROP = 38, 24


def call(function, *arguments):
    if function(*arguments) != 0:
        error = ctypes.get_errno()
        sys.exit(f"pod.py: {function.__name__}{arguments}: {os.strerror(error)}")


def mount(source, at, flags, kind=None):
    encode = lambda text: text and text.encode()
    call(libc.mount, encode(source), encode(at), encode(kind), ctypes.c_ulong(flags), None)


def bind(source, at, readonly):
    mount(source, at, MS_BIND | MS_REC)
    if readonly:
        mount(None, at, MS_BIND | MS_REMOUNT | MS_RDONLY)


pod = json.load(sys.stdin)
root = pod["root"]
call(libc.unshare, CLONE_NEWNS)
mount(None, "/", MS_REC | MS_PRIVATE)
bind(root, root, pod["readonly"])
mount("proc", f"{root}/proc", 0, "proc")
bind("/dev", f"{root}/dev", False)
for source, at, readonly in pod["mounts"]:
    bind(source, root + at, readonly)
os.chroot(root)
os.chdir("/")
for capability in range(64):
    if libc.prctl(PR_CAPBSET_DROP, capability, 0, 0, 0) != 0:
        break
call(libc.prctl, PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
os.setgroups(pod["groups"])
os.setresgid(*[pod["gid"]] * 3)
os.setresuid(*[pod["uid"]] * 3)
null = os.open("/dev/null", os.O_RDONLY)
os.dup2(null, 0)
os.execve(pod["argv"][0], pod["argv"], pod["env"])
