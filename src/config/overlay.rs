//! What outranks the file: environment variables, and over them the command line.

use super::{
    error::Problem,
    shape::{Misplaced, Shape, nearest},
    tree::{Node, Origin, Way},
};

/// What the name of an environment variable of ours starts with. The two underscores at its end keep it apart from what
/// Kubernetes sets for a Service of our name (`ALIPAYPLUS_CANCEL_PORT`).
pub const ENVIRONMENT_PREFIX: &str = "ALIPAYPLUS_CANCEL__";

/// This process's environment variables that begin with [`ENVIRONMENT_PREFIX`]. What is not UTF-8 in them is replaced,
/// since no setting has such a value.
pub fn environment() -> impl Iterator<Item = (String, String)> {
    let text = |os: std::ffi::OsString| os.to_string_lossy().into_owned();
    std::env::vars_os()
        .map(move |(name, value)| (text(name), text(value)))
        .filter(|(name, _)| name.starts_with(ENVIRONMENT_PREFIX))
}

/// Whether who runs this wants no colours: <https://no-color.org>.
pub fn wants_no_colour() -> bool {
    std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty())
}

/// Puts the variables over the tree. Others than ours are passed over.
pub(super) fn environment_over(
    root: &mut Node,
    shape: &Shape,
    env: impl Iterator<Item = (String, String)>,
    problems: &mut Vec<Problem>,
) {
    let ours = |(name, value): (String, String)| {
        let steps = name.strip_prefix(ENVIRONMENT_PREFIX)?.split("__").map(str::to_owned);
        Some((steps.collect::<Vec<_>>(), name, value))
    };
    let mut ours: Vec<_> = env.filter_map(ours).collect();
    // a table before what is in it, and the third of a list after the second
    ours.sort_by_cached_key(|(steps, ..)| {
        let order = |step: &String| (step.parse::<usize>().ok(), step.clone());
        steps.iter().map(order).collect::<Vec<_>>()
    });
    for (steps, name, text) in ours {
        let steps: Vec<_> = steps.iter().map(String::as_str).collect();
        let origin = Origin::Environment { name: name.clone() };
        let same = |step: &str, key: &str| step == key.to_ascii_uppercase();
        let wrong = match shape.set(root, &steps, same, (&text, &origin)) {
            Ok(()) => continue,
            Err(Misplaced::Wrong(wrong)) => wrong,
            Err(Misplaced::Unknown) => {
                let variable = |steps: Vec<String>| {
                    let upper = |step: String| match step.as_str() {
                        "<name>" => "<acquirerId>".to_owned(),
                        _ => step.to_ascii_uppercase(),
                    };
                    let steps: Vec<_> = steps.into_iter().map(upper).collect();
                    format!("{ENVIRONMENT_PREFIX}{}", steps.join("__"))
                };
                let known: Vec<_> = shape.leaves().into_iter().map(variable).collect();
                unknown(&name.to_ascii_uppercase(), &known)
            }
        };
        problems.push(Problem::new(&origin, &Way::default(), wrong));
    }
}

/// Puts the flags over the tree, the last one of a name last.
pub(super) fn flags_over(
    root: &mut Node,
    shape: &Shape,
    flags: &[(String, String)],
    problems: &mut Vec<Problem>,
) {
    for (name, text) in flags {
        let steps: Vec<_> = name.split('.').collect();
        let wrong = match shape.set(root, &steps, |step, key| step == key, (text, &Origin::Flag)) {
            Ok(()) => continue,
            Err(Misplaced::Wrong(wrong)) => wrong,
            Err(Misplaced::Unknown) => {
                let known = shape.leaves().into_iter().map(|steps| steps.join("."));
                unknown(name, &known.collect::<Vec<_>>())
            }
        };
        problems.push(Problem::new(&Origin::Flag, &Way::default(), format!("{name}: {wrong}")));
    }
}

fn unknown(name: &str, known: &[String]) -> String {
    match nearest(name, known.iter().map(String::as_str), 0.7) {
        Some(meant) => format!("no such setting; did you mean `{meant}`?"),
        None => "no such setting; `alipayplus-cancel.example.toml` shows them all".to_owned(),
    }
}
