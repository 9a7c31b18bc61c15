//! The settings in effect, as TOML that reads back, each with where it came from.

use super::{
    read::Effective,
    tree::{Step, key},
};

/// Prints them all.
pub(super) fn print(effective: &[Effective]) -> String {
    let all: Vec<&Effective> = effective.iter().collect();
    let mut lines =
        vec!["# the settings in effect; behind each stands where it came from".to_owned()];
    table(&all, 0, "", &mut lines);
    lines.push(String::new());
    lines.join("\n")
}

/// A table whose way has `depth` steps: first its own values, then the tables in it, as TOML wants it.
fn table(values: &[&Effective], depth: usize, header: &str, lines: &mut Vec<String>) {
    let inside = depth.saturating_add(1);
    let (own, deeper): (Vec<_>, Vec<_>) =
        values.iter().copied().partition(|value| value.way.0.len() == inside);
    for Effective { way, literal, origin } in own {
        if let Some(Step::Key(name)) = way.0.last() {
            lines.push(format!("{} = {literal}  # {origin}", key(name)));
        }
    }
    for group in deeper.chunk_by(|a, b| a.way.0.get(depth) == b.way.0.get(depth)) {
        let Some(Step::Key(name)) = group.first().and_then(|first| first.way.0.get(depth)) else {
            continue;
        };
        let dot = if header.is_empty() { "" } else { "." };
        let header = format!("{header}{dot}{}", key(name));
        for item in group.chunk_by(|a, b| index(a, inside) == index(b, inside)) {
            let listed = item.first().is_some_and(|first| index(first, inside).is_some());
            let depth = if listed { inside.saturating_add(1) } else { inside };
            let has_own = item.iter().any(|value| value.way.0.len() == depth.saturating_add(1));
            if listed {
                lines.push(format!("\n[[{header}]]"));
            } else if has_own {
                lines.push(format!("\n[{header}]"));
            }
            table(item, depth, &header, lines);
        }
    }
}

fn index(value: &Effective, depth: usize) -> Option<usize> {
    match value.way.0.get(depth) {
        Some(Step::Index(index)) => Some(*index),
        Some(Step::Key(_)) | None => None,
    }
}
