//! What was measured, as a table for people and as `target/bench/NAME.json` for machines.

use std::{
    fs,
    time::{SystemTime, UNIX_EPOCH},
};

use serde_json::{Map, Value, json};

/// Rows of one bench. The columns are those of the first row of a table.
pub struct Report {
    name: &'static str,
    rows: Vec<Value>,
    widths: Vec<usize>,
}

/// A cell: the column's name, the value, and how many digits behind the point people see.
pub type Cell<'a> = (&'a str, Value, usize);

impl Report {
    pub fn new(name: &'static str) -> Self {
        Self { name, rows: Vec::new(), widths: Vec::new() }
    }

    /// Whether nothing was measured yet.
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// Begins a table with a title and a line about it.
    pub fn table(&mut self, title: &str) {
        println!("\n{title}");
        self.widths.clear();
    }

    /// Prints a row, and keeps it.
    pub fn row(&mut self, table: &str, cells: &[Cell<'_>]) {
        if self.widths.is_empty() {
            self.widths = cells.iter().map(|cell| cell.0.chars().count().max(10)).collect();
            let heads: Vec<_> = cells
                .iter()
                .zip(&self.widths)
                .map(|(cell, width)| format!("{:>width$}", cell.0))
                .collect();
            println!("{}", heads.join("  "));
        }
        let shown = cells.iter().zip(&self.widths).map(|((_, value, digits), width)| {
            let text = match value {
                Value::Number(number) => {
                    format!("{:.*}", digits, number.as_f64().unwrap_or(f64::NAN))
                }
                Value::String(text) => text.clone(),
                Value::Null => "–".to_owned(),
                other => other.to_string(),
            };
            format!("{text:>width$}")
        });
        println!("{}", shown.collect::<Vec<_>>().join("  "));
        let mut row = Map::new();
        row.insert("table".to_owned(), table.into());
        row.extend(cells.iter().map(|cell| (cell.0.to_owned(), cell.1.clone())));
        self.rows.push(Value::Object(row));
    }

    /// Writes the file for machines.
    pub fn write(&self) {
        let dir = super::target().join("bench");
        fs::create_dir_all(&dir).expect("a folder");
        let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("a time").as_secs();
        let cpu = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let cpu = cpu.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": "));
        let text = json!({
            "bench": self.name,
            "unix_time": now,
            "cpu": cpu.map(|(_, name)| name),
            "rows": self.rows,
        });
        let file = dir.join(format!("{}.json", self.name));
        fs::write(&file, format!("{text:#}\n")).expect("a file");
        println!("\n{}", file.display());
    }
}

/// The middle one.
pub fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted.get(sorted.len() / 2).copied().unwrap_or(f64::NAN)
}

/// How far apart they are: (max − min) / median, in percent.
pub fn spread(values: &[f64]) -> f64 {
    let max = values.iter().copied().fold(f64::MIN, f64::max);
    let min = values.iter().copied().fold(f64::MAX, f64::min);
    100.0 * (max - min) / median(values)
}
