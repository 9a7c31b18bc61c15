//! A crash leaves nothing of the process's memory on a disk, whatever the limits it was started under.

use std::{
    fs,
    os::unix::process::ExitStatusExt as _,
    path::Path,
    process::{Child, Command, ExitStatus, Stdio},
};

use crate::harness::{
    eventually,
    service::{Service, command, furnish},
};

/// Started by a shell that allows cores of any size, in a folder where they would be written.
fn allowed_to_dump(dir: &Path) -> Child {
    furnish(dir, "");
    let service = command(&["serve", "--config", "settings.toml"]);
    let mut shell = Command::new("sh");
    shell.args(["-c", "ulimit -c unlimited || ulimit -c $(ulimit -Hc); exec \"$0\" \"$@\""]);
    shell.arg(service.get_program()).args(service.get_args());
    for (name, value) in service.get_envs() {
        match value {
            Some(value) => shell.env(name, value),
            None => shell.env_remove(name),
        };
    }
    let log = fs::File::create(dir.join("stderr.log")).expect("a log file");
    shell.current_dir(dir).stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
    shell.spawn().expect("sh")
}

/// Once it runs: its soft and its hard limit of a core's size.
fn limits(pid: u32) -> [String; 2] {
    let text = fs::read_to_string(format!("/proc/{pid}/limits")).expect("Linux");
    let line = text.lines().find(|line| line.starts_with("Max core file size")).expect("a limit");
    let mut words = line.trim_start_matches("Max core file size").split_whitespace();
    [(); 2].map(|()| words.next().expect("two limits").to_owned())
}

/// Rust's own handler takes the first SIGSEGV for a full stack and returns, so it is sent until it counts.
fn ends_by(child: &mut Child, signal: &str) -> ExitStatus {
    let pid = child.id().to_string();
    eventually("it ends", || {
        let mut kill = Command::new("kill");
        // no success once it has ended
        kill.args(["-s", signal, &pid]).stderr(Stdio::null()).status().expect("kill");
        child.try_wait().unwrap()
    })
}

fn no_core_in(dir: &Path) {
    let names = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name());
    let cores: Vec<_> = names.filter(|name| name.to_string_lossy().starts_with("core")).collect();
    assert!(cores.is_empty(), "{cores:?}");
}

#[test]
fn a_service_has_no_room_for_a_core() {
    let service = Service::shared();
    assert_eq!(limits(service.pid()), ["0", "0"]);
}

#[test]
fn a_crash_leaves_no_core_even_if_the_limit_is_raised_behind_its_back() {
    // not QUIT: what a shell starts in the background ignores it
    for (signal, number) in [("SEGV", 11), ("ABRT", 6), ("ILL", 4)] {
        for raised in [false, true] {
            let dir = tempfile::Builder::new().prefix("apc-it-").tempdir().unwrap();
            let mut child = allowed_to_dump(dir.path());
            let log = dir.path().join("stderr.log");
            eventually("it is ready", || {
                let said = fs::read_to_string(&log).unwrap_or_default();
                said.contains(r#""message":"ready""#).then_some(())
            });
            let pid = child.id();
            assert_eq!(limits(pid), ["0", "0"]);
            if raised {
                // root may; then it is its own mark that keeps it from being dumped
                let pid = pid.to_string();
                let raise = ["--pid", &pid, "--core=unlimited:unlimited"];
                let raise = Command::new("prlimit").args(raise).stderr(Stdio::null()).status();
                if !raise.is_ok_and(|status| status.success()) {
                    eprintln!("skipped: nobody here may raise the limit of another process");
                    child.kill().unwrap();
                    child.wait().unwrap();
                    continue;
                }
            }
            let status = ends_by(&mut child, signal);
            assert_eq!(status.signal(), Some(number), "{status}");
            assert!(!status.core_dumped(), "{status}, the limit raised: {raised}");
            no_core_in(dir.path());
        }
    }
}

#[test]
fn a_tool_that_handles_keys_leaves_none_either() {
    // it waits for what nobody writes
    let mut child = Command::new("sh")
        .args(["-c", "ulimit -c unlimited 2>/dev/null; exec \"$0\" \"$@\""])
        .arg(command(&[]).get_program())
        .args(["keys", "show", "/dev/stdin"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("sh");
    let pid = child.id();
    eventually("it turned them off", || (limits(pid) == ["0", "0"]).then_some(()));
    assert!(!ends_by(&mut child, "ABRT").core_dumped());
}
