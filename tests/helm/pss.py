"""The restricted Pod Security Standard, as https://kubernetes.io/docs/concepts/security/pod-security-standards/ has it
(baseline and restricted, Kubernetes 1.36): what is wrong with a pod's spec.

It is tested on pods that each break one rule: see `violations`.
"""

import copy

SAFE_SYSCTLS = {
    "kernel.shm_rmid_forced", "net.ipv4.ip_local_port_range", "net.ipv4.ip_unprivileged_port_start",
    "net.ipv4.tcp_syncookies", "net.ipv4.ping_group_range", "net.ipv4.ip_local_reserved_ports",
    "net.ipv4.tcp_keepalive_time", "net.ipv4.tcp_fin_timeout", "net.ipv4.tcp_keepalive_intvl",
    "net.ipv4.tcp_keepalive_probes",
}
VOLUMES = {"configMap", "csi", "downwardAPI", "emptyDir", "ephemeral", "persistentVolumeClaim", "projected", "secret"}
SELINUX_TYPES = {None, "", "container_t", "container_init_t", "container_kvm_t", "container_engine_t"}


def wrong_with(spec):
    """Every rule that the spec of a pod breaks, as sentences; none: it is restricted."""
    pod = spec.get("securityContext") or {}
    found = []

    def rule(holds, text):
        if not holds:
            found.append(text)

    for field in ("hostNetwork", "hostPID", "hostIPC"):
        rule(not spec.get(field), f"{field} is set")
    rule(not (pod.get("windowsOptions") or {}).get("hostProcess"), "hostProcess is set")
    for sysctl in pod.get("sysctls") or []:
        rule(sysctl["name"] in SAFE_SYSCTLS, f"sysctl {sysctl['name']} is not a safe one")
    for volume in spec.get("volumes") or []:
        kinds = set(volume) - {"name"}
        rule(kinds <= VOLUMES, f"volume {volume['name']} is a {', '.join(kinds - VOLUMES)}")

    containers = [c for kind in ("initContainers", "containers", "ephemeralContainers") for c in spec.get(kind) or []]
    rule(containers, "there is no container")
    for container in containers:
        own, name = container.get("securityContext") or {}, container["name"]

        def either(field):
            return own[field] if field in own else pod.get(field)

        rule(not own.get("privileged"), f"{name}: privileged")
        rule(own.get("allowPrivilegeEscalation") is False, f"{name}: allowPrivilegeEscalation is not false")
        capabilities = own.get("capabilities") or {}
        rule("ALL" in (capabilities.get("drop") or []), f"{name}: ALL capabilities are not dropped")
        added = set(capabilities.get("add") or []) - {"NET_BIND_SERVICE"}
        rule(not added, f"{name}: adds {', '.join(added)}")
        rule(either("runAsNonRoot") is True, f"{name}: runAsNonRoot is not true")
        rule(own.get("runAsUser") != 0 and pod.get("runAsUser") != 0, f"{name}: runs as user 0")
        seccomp = (either("seccompProfile") or {}).get("type")
        rule(seccomp in ("RuntimeDefault", "Localhost"), f"{name}: seccomp is {seccomp}")
        rule(own.get("procMount") in (None, "Default"), f"{name}: procMount {own.get('procMount')}")
        selinux = either("seLinuxOptions") or {}
        rule(selinux.get("type") in SELINUX_TYPES, f"{name}: SELinux type {selinux.get('type')}")
        rule(not selinux.get("user") and not selinux.get("role"), f"{name}: SELinux user or role is set")
        apparmor = (either("appArmorProfile") or {}).get("type")
        rule(apparmor in (None, "RuntimeDefault", "Localhost"), f"{name}: AppArmor is {apparmor}")
        rule((own.get("windowsOptions") or {}).get("hostProcess") is not True, f"{name}: hostProcess is set")
        for port in container.get("ports") or []:
            rule(not port.get("hostPort"), f"{name}: hostPort {port.get('hostPort')}")
        handlers = [container.get(f"{probe}Probe") for probe in ("startup", "liveness", "readiness")]
        handlers += (container.get("lifecycle") or {}).values()
        for handler in filter(None, handlers):
            for kind in ("httpGet", "tcpSocket"):
                rule(not (handler.get(kind) or {}).get("host"), f"{name}: a probe names a host")
    return found


def violations(good):
    """From a good spec, specs that each break one rule, by what `wrong_with` has to say of them."""

    def change(text, edit):
        spec = copy.deepcopy(good)
        edit(spec, spec["containers"][0], spec["containers"][0]["securityContext"], spec["securityContext"])
        return text, spec

    return [
        change("hostNetwork", lambda s, c, o, p: s.update(hostNetwork=True)),
        change("hostPID", lambda s, c, o, p: s.update(hostPID=True)),
        change("sysctl", lambda s, c, o, p: p.update(sysctls=[{"name": "kernel.msgmax", "value": "1"}])),
        change("is a hostPath", lambda s, c, o, p: s["volumes"].append({"name": "x", "hostPath": {"path": "/"}})),
        change("privileged", lambda s, c, o, p: o.update(privileged=True)),
        change("allowPrivilegeEscalation", lambda s, c, o, p: o.pop("allowPrivilegeEscalation")),
        change("capabilities", lambda s, c, o, p: o.update(capabilities={"drop": ["NET_RAW"]})),
        change("adds SYS_ADMIN", lambda s, c, o, p: o["capabilities"].update(add=["SYS_ADMIN"])),
        change("runAsNonRoot", lambda s, c, o, p: p.pop("runAsNonRoot")),
        change("runAsNonRoot", lambda s, c, o, p: o.update(runAsNonRoot=False)),
        change("user 0", lambda s, c, o, p: p.update(runAsUser=0)),
        change("seccomp", lambda s, c, o, p: p.pop("seccompProfile")),
        change("seccomp", lambda s, c, o, p: o.update(seccompProfile={"type": "Unconfined"})),
        change("SELinux type", lambda s, c, o, p: o.update(seLinuxOptions={"type": "spc_t"})),
        change("AppArmor", lambda s, c, o, p: o.update(appArmorProfile={"type": "Unconfined"})),
        change("procMount", lambda s, c, o, p: o.update(procMount="Unmasked")),
        change("hostPort", lambda s, c, o, p: c.update(ports=[{"containerPort": 1, "hostPort": 1}])),
        change("names a host", lambda s, c, o, p: c["livenessProbe"]["httpGet"].update(host="192.0.2.1")),
        change("ALL capabilities", lambda s, c, o, p: s.update(initContainers=[{
            "name": "x", "securityContext": {"allowPrivilegeEscalation": False}}])),
    ]
