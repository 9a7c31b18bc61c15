//! What settings there are: their names, and how a text becomes a value of theirs.
//!
//! One walk over the shape answers all of: is this key known, what was probably meant, which setting does an environment
//! variable name.

use std::collections::BTreeMap;

use super::{
    error::Problem,
    tree::{self, Node, Origin, Value, Way},
};

/// What may stand at a place.
#[derive(Clone, Debug)]
pub(super) enum Shape {
    /// A single value.
    Leaf(Scalar),
    /// A table of known keys.
    Table(Vec<Field>),
    /// A list of such.
    Each(Box<Shape>),
    /// A table with names that the operator chooses.
    Named(Box<Shape>),
}

/// What an environment variable's text is taken for.
#[derive(Clone, Copy, Debug)]
pub(super) enum Scalar {
    /// The text itself.
    Text,
    /// A whole number.
    Integer,
    /// A number.
    Float,
    /// `true` or `false`.
    Bool,
}

/// A key of a table.
#[derive(Clone, Debug)]
pub(super) struct Field {
    pub(super) name: &'static str,
    pub(super) shape: Shape,
}

/// How alike two names must be for one to be the other, misspelt: `tsl` and `tls` are.
const ALIKE: f64 = 0.6;

impl Shape {
    /// A text from outside the file, as a value of this shape. A text that does not fit stays a text: the reader says
    /// what was expected.
    pub(super) fn node(&self, text: &str, origin: &Origin) -> Result<Node, String> {
        let value = match self {
            Self::Leaf(scalar) => scalar.value(text),
            Self::Each(inner) if inner.is_leaf() && !text.trim_start().starts_with('[') => {
                let items = text.split(',').map(str::trim).filter(|item| !item.is_empty());
                let node = |item| inner.node(item, origin);
                Value::List(items.map(node).collect::<Result<_, _>>()?)
            }
            Self::Table(_) | Self::Each(_) | Self::Named(_) => {
                return tree::inline(text, origin)
                    .map_err(|wrong| format!("expected a TOML value: {}", wrong.message));
            }
        };
        Ok(Node { value, origin: origin.clone() })
    }

    /// Whether it is a single value.
    pub(super) const fn is_leaf(&self) -> bool {
        matches!(self, Self::Leaf(_))
    }

    /// Every setting, by its steps; `0` stands for an index and `<name>` for a name the operator chooses.
    pub(super) fn leaves(&self) -> Vec<Vec<String>> {
        let under = |step: &str, inner: &Self| -> Vec<Vec<String>> {
            let step = [step.to_owned()];
            inner.leaves().into_iter().map(|steps| [&step, steps.as_slice()].concat()).collect()
        };
        match self {
            Self::Leaf(_) => vec![vec![]],
            Self::Each(inner) if inner.is_leaf() => vec![vec![]],
            Self::Each(inner) => under("0", inner),
            Self::Named(inner) => under("<name>", inner),
            Self::Table(fields) => {
                fields.iter().flat_map(|field| under(field.name, &field.shape)).collect()
            }
        }
    }

    /// Reports every key of the tree that names no setting.
    pub(super) fn unknown_keys(&self, root: &Node, problems: &mut Vec<Problem>) {
        self.unknown_under(root, &Way::default(), self, problems);
    }

    fn unknown_under(&self, node: &Node, way: &Way, root: &Self, problems: &mut Vec<Problem>) {
        match (self, &node.value) {
            (Self::Table(fields), Value::Table(table)) => {
                for (name, inner) in table {
                    let way = way.key(name);
                    if let Some(field) = fields.iter().find(|field| field.name == name) {
                        field.shape.unknown_under(inner, &way, root, problems);
                    } else {
                        let hint = hint(name, &way, fields, root);
                        let text = format!("no such setting; {hint}");
                        problems.push(Problem::new(&inner.origin, &way, text));
                    }
                }
            }
            (Self::Each(inner), Value::List(items)) => {
                for (index, item) in items.iter().enumerate() {
                    inner.unknown_under(item, &way.index(index), root, problems);
                }
            }
            (Self::Named(inner), Value::Table(table)) => {
                for (name, item) in table {
                    inner.unknown_under(item, &way.key(name), root, problems);
                }
            }
            // a leaf has no keys; a value of another shape is the reader's to refuse
            (Self::Leaf(_) | Self::Table(_) | Self::Each(_) | Self::Named(_), _) => {}
        }
    }

    /// Puts a text at the place that `steps` name. `same` tells whether a step means a key.
    pub(super) fn set(
        &self,
        root: &mut Node,
        steps: &[&str],
        same: fn(&str, &str) -> bool,
        (text, origin): (&str, &Origin),
    ) -> Result<(), Misplaced> {
        let Some((step, rest)) = steps.split_first() else {
            *root = self.node(text, origin).map_err(Misplaced::Wrong)?;
            return Ok(());
        };
        match (self, &mut root.value) {
            (Self::Table(fields), Value::Table(table)) => {
                let field = fields.iter().find(|field| same(step, field.name));
                let field = field.ok_or(Misplaced::Unknown)?;
                field.shape.set_at(table, field.name, rest, same, (text, origin))
            }
            (Self::Named(inner), Value::Table(table)) => {
                inner.set_at(table, step, rest, same, (text, origin))
            }
            (Self::Each(inner), Value::List(items)) if !inner.is_leaf() => {
                let index: usize = step.parse().map_err(|_| Misplaced::Unknown)?;
                let count = items.len();
                if index > count {
                    let wrong = format!("there are {count} of them, so the next index is {count}");
                    return Err(Misplaced::Wrong(wrong));
                }
                if index == count {
                    let mut node = inner.vacant(origin);
                    inner.set(&mut node, rest, same, (text, origin))?;
                    items.push(node);
                    return Ok(());
                }
                let Some(item) = items.get_mut(index) else { return Err(Misplaced::Unknown) };
                inner.set(item, rest, same, (text, origin))
            }
            (Self::Leaf(_), _) => Err(Misplaced::Unknown),
            (Self::Each(inner), _) if inner.is_leaf() => Err(Misplaced::Unknown),
            // the file has another shape there, which the reader refuses
            (Self::Table(_) | Self::Each(_) | Self::Named(_), _) => Ok(()),
        }
    }

    fn set_at(
        &self,
        table: &mut BTreeMap<String, Node>,
        name: &str,
        rest: &[&str],
        same: fn(&str, &str) -> bool,
        (text, origin): (&str, &Origin),
    ) -> Result<(), Misplaced> {
        if let Some(node) = table.get_mut(name) {
            return self.set(node, rest, same, (text, origin));
        }
        let mut node = self.vacant(origin);
        self.set(&mut node, rest, same, (text, origin))?;
        table.insert(name.to_owned(), node);
        Ok(())
    }

    fn vacant(&self, origin: &Origin) -> Node {
        match self {
            Self::Each(_) => Node { value: Value::List(vec![]), origin: origin.clone() },
            Self::Leaf(_) | Self::Table(_) | Self::Named(_) => Node::empty_table(origin.clone()),
        }
    }
}

/// Why a text from outside the file found no place.
#[derive(Debug)]
pub(super) enum Misplaced {
    /// There is no such setting.
    Unknown,
    /// There is, but not like that.
    Wrong(String),
}

impl Scalar {
    fn value(self, text: &str) -> Value {
        let typed = match self {
            Self::Text => None,
            Self::Integer => text.parse().ok().map(Value::Integer),
            Self::Float => text.parse().ok().map(Value::Float),
            Self::Bool => text.parse().ok().map(Value::Bool),
        };
        typed.unwrap_or_else(|| Value::Text(text.to_owned()))
    }
}

/// The candidate most like the name, if any is like it at all.
pub(super) fn nearest<'c>(
    name: &str,
    candidates: impl IntoIterator<Item = &'c str>,
    least: f64,
) -> Option<&'c str> {
    let likeness = |candidate: &&str| strsim::normalized_damerau_levenshtein(name, candidate);
    let best = candidates.into_iter().max_by(|a, b| likeness(a).total_cmp(&likeness(b)))?;
    (likeness(&best) >= least).then_some(best)
}

/// A sibling that is spelt like it; else a setting of that name elsewhere; else what may stand here.
fn hint(name: &str, way: &Way, fields: &[Field], root: &Shape) -> String {
    if let Some(sibling) = nearest(name, fields.iter().map(|field| field.name), ALIKE) {
        let mut meant = way.clone();
        meant.0.pop();
        return format!("did you mean `{}`?", meant.key(sibling));
    }
    let leaves = root.leaves();
    let namesake = leaves.iter().find(|steps| steps.last().is_some_and(|last| last == name));
    if let Some(steps) = namesake {
        return format!("did you mean `{}`?", steps.join("."));
    }
    let known: Vec<_> = fields.iter().map(|field| format!("`{}`", field.name)).collect();
    format!("known here: {}", known.join(", "))
}
