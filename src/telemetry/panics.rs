//! What is told of a panic: where it was, and nothing of what was being worked on.
//!
//! The text of a panic may quote what the program had in its hands (the library's own quotes the text that was cut, or
//! the error that was not expected), and so a token. Only a text that stands in the program itself is told.

use std::{
    backtrace::{Backtrace, BacktraceStatus},
    io::{self, Write as _},
    panic::{self, PanicHookInfo},
    thread,
};

/// From now on every panic of this process is one line of the log; or of standard error, where no log was started.
pub fn tell_no_values() {
    panic::set_hook(Box::new(tell));
}

fn tell(info: &PanicHookInfo<'_>) {
    let thread = thread::current();
    let thread = thread.name().unwrap_or("unnamed");
    let at = info.location().map(ToString::to_string).unwrap_or_default();
    // whatever was put together at run time is another type
    let said = info.payload().downcast_ref::<&'static str>().copied();
    // as RUST_BACKTRACE says
    let backtrace = Backtrace::capture();
    let backtrace = (backtrace.status() == BacktraceStatus::Captured).then_some(&backtrace);
    if tracing::dispatcher::has_been_set() {
        let backtrace = backtrace.map(tracing::field::display);
        tracing::error!(thread, at, said, backtrace, "panicked");
        return;
    }
    let said = said.map(|said| format!(": {said}")).unwrap_or_default();
    let backtrace = backtrace.map(|backtrace| format!("\n{backtrace}")).unwrap_or_default();
    // there is nobody left to tell that it cannot be written
    drop(writeln!(io::stderr(), "thread '{thread}' panicked at {at}{said}{backtrace}"));
}
