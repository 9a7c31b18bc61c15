//! No core dumps: a crash must not leave keys and tokens on a disk.

use rustix::process::{Resource, Rlimit, setrlimit};

/// Turns them off for this process and all it starts, before it reads anything.
///
/// A limit of zero is enough where the system writes cores to files. Where it hands them to a program the limit does not
/// count, so this process is marked not to be dumped at all; then only root may look into it with a debugger.
pub fn no_core_dumps() {
    let none = Rlimit { current: Some(0), maximum: Some(0) };
    // neither can fail by the system's manual; a service that does not start for it would be worse
    let _limited = setrlimit(Resource::Core, none);
    #[cfg(target_os = "linux")]
    let _marked =
        rustix::process::set_dumpable_behavior(rustix::process::DumpableBehavior::NotDumpable);
}
