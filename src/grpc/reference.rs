//! The contract of `proto/` for people: its services, messages and enums with their comments, out of the descriptors that
//! reflection answers from, so that it cannot say anything else than what is served.

use std::collections::HashMap;

use prost::Message as _;
use prost_types::{
    DescriptorProto, EnumDescriptorProto, FieldDescriptorProto, FileDescriptorProto,
    FileDescriptorSet, MethodDescriptorProto, ServiceDescriptorProto,
    field_descriptor_proto::{Label, Type},
};

use super::wire;

/// The package, without which names are told.
const PACKAGE: &str = "alipayplus.cancel.v1";

/// All of it, in the order of its files.
#[derive(Clone, Debug, Default)]
pub struct Reference {
    /// The services.
    pub services: Vec<Service>,
    /// The messages.
    pub messages: Vec<Table>,
    /// The enums.
    pub enums: Vec<Table>,
}

/// A service.
#[derive(Clone, Debug)]
pub struct Service {
    /// Its name, without the package.
    pub name: String,
    /// Its comment.
    pub about: String,
    /// Its methods.
    pub methods: Vec<Method>,
}

/// A method of a service.
#[derive(Clone, Debug)]
pub struct Method {
    /// Its name.
    pub name: String,
    /// Its comment.
    pub about: String,
    /// The message it takes.
    pub request: String,
    /// The message it answers.
    pub response: String,
    /// Whether it answers many.
    pub streams: bool,
}

/// A message with its fields, or an enum with its values.
#[derive(Clone, Debug)]
pub struct Table {
    /// Its name.
    pub name: String,
    /// Its comment.
    pub about: String,
    /// Its fields or values.
    pub rows: Vec<Row>,
}

/// A field or a value.
#[derive(Clone, Debug)]
pub struct Row {
    /// Its name.
    pub name: String,
    /// Its number on the wire.
    pub number: i32,
    /// A field's type; empty for a value.
    pub kind: String,
    /// Its comment.
    pub about: String,
}

impl Reference {
    /// The contract that this program serves.
    pub fn of_this_program() -> Self {
        let mut reference = Self::default();
        let set = FileDescriptorSet::decode(wire::DESCRIPTORS).unwrap_or_default();
        for file in set.file.iter().filter(|file| file.package() == PACKAGE) {
            reference.add(file);
        }
        reference
    }

    fn add(&mut self, file: &FileDescriptorProto) {
        let comments = Comments::of(file);
        let at = |path: &[i32]| comments.at(path);
        for (nth, it) in (0..).zip(&file.service) {
            self.services.push(service(it, &|path| at(&[&[6, nth], path].concat())));
        }
        for (nth, it) in (0..).zip(&file.message_type) {
            self.messages.push(message(it, &|path| at(&[&[4, nth], path].concat())));
        }
        for (nth, it) in (0..).zip(&file.enum_type) {
            self.enums.push(values(it, &|path| at(&[&[5, nth], path].concat())));
        }
    }

    /// As a page of Markdown.
    pub fn markdown(&self) -> String {
        let mut text = String::from(
            "# gRPC reference\n\nPackage `alipayplus.cancel.v1`. Made from [proto/](../proto/alipayplus/cancel/v1) by \
             `alipayplus-cancel proto`; a running service shows it at `http://<admin.listen>/reference`.\n",
        );
        for service in &self.services {
            section(&mut text, 2, &service.name, &service.about);
            for method in &service.methods {
                let stream = if method.streams { "stream of " } else { "" };
                section(&mut text, 3, &format!("{}.{}", service.name, method.name), &method.about);
                let (request, response) = (linked(&method.request), linked(&method.response));
                push(&mut text, format_args!("\n{request} → {stream}{response}\n"));
            }
        }
        for (title, what, tables) in
            [("Messages", "field", &self.messages), ("Enums", "value", &self.enums)]
        {
            push(&mut text, format_args!("\n## {title}\n"));
            for table in tables {
                section(&mut text, 3, &table.name, &table.about);
                if table.rows.is_empty() {
                    continue;
                }
                let of_fields = what == "field";
                let (head, line) = if of_fields { (" type |", "---|") } else { ("", "") };
                push(
                    &mut text,
                    format_args!("\n| {what} |{head} number | is |\n|---|{line}---|---|\n"),
                );
                for Row { name, number, kind, about } in &table.rows {
                    let kind =
                        if of_fields { format!(" {} |", linked_type(kind)) } else { String::new() };
                    let about = about.replace('|', "\\|").replace('\n', " ");
                    push(&mut text, format_args!("| `{name}` |{kind} {number} | {about} |\n"));
                }
            }
        }
        text
    }
}

fn push(text: &mut String, what: std::fmt::Arguments<'_>) {
    text.push_str(&what.to_string());
}

fn section(text: &mut String, depth: usize, name: &str, about: &str) {
    push(text, format_args!("\n{} {name}\n", "#".repeat(depth)));
    if !about.is_empty() {
        push(text, format_args!("\n{about}\n"));
    }
}

fn linked(message: &str) -> String {
    format!("[`{message}`](#{})", message.to_lowercase())
}

/// A type with a link, if it is one of ours.
fn linked_type(kind: &str) -> String {
    let (before, name) = kind.rsplit_once(' ').map_or(("", kind), |(before, name)| (before, name));
    let space = if before.is_empty() { "" } else { " " };
    let ours = name.starts_with(char::is_uppercase);
    format!("{before}{space}{}", if ours { linked(name) } else { format!("`{name}`") })
}

type At<'a> = &'a dyn Fn(&[i32]) -> String;

fn service(it: &ServiceDescriptorProto, at: At<'_>) -> Service {
    let method = |(nth, it): (i32, &MethodDescriptorProto)| Method {
        name: it.name().to_owned(),
        about: at(&[2, nth]),
        request: bare(it.input_type()),
        response: bare(it.output_type()),
        streams: it.server_streaming(),
    };
    let methods = (0..).zip(&it.method).map(method).collect();
    Service { name: it.name().to_owned(), about: at(&[]), methods }
}

fn message(it: &DescriptorProto, at: At<'_>) -> Table {
    let row = |(nth, field): (i32, &FieldDescriptorProto)| Row {
        name: field.name().to_owned(),
        number: field.number(),
        kind: kind(field),
        about: at(&[2, nth]),
    };
    let rows = (0..).zip(&it.field).map(row).collect();
    Table { name: it.name().to_owned(), about: at(&[]), rows }
}

fn values(it: &EnumDescriptorProto, at: At<'_>) -> Table {
    let rows = (0..).zip(&it.value).map(|(nth, value)| Row {
        name: value.name().to_owned(),
        number: value.number(),
        kind: String::new(),
        about: at(&[2, nth]),
    });
    Table { name: it.name().to_owned(), about: at(&[]), rows: rows.collect() }
}

/// A type by its name, without our package.
fn bare(name: &str) -> String {
    let name = name.trim_start_matches('.');
    name.strip_prefix(PACKAGE).map_or(name, |rest| rest.trim_start_matches('.')).to_owned()
}

fn kind(field: &FieldDescriptorProto) -> String {
    let name = match field.r#type() {
        Type::Message | Type::Enum | Type::Group => bare(field.type_name()),
        scalar @ (Type::Double
        | Type::Float
        | Type::Int64
        | Type::Uint64
        | Type::Int32
        | Type::Fixed64
        | Type::Fixed32
        | Type::Bool
        | Type::String
        | Type::Bytes
        | Type::Uint32
        | Type::Sfixed32
        | Type::Sfixed64
        | Type::Sint32
        | Type::Sint64) => scalar.as_str_name().trim_start_matches("TYPE_").to_lowercase(),
    };
    let before = if field.label() == Label::Repeated {
        "repeated "
    } else if field.proto3_optional() {
        "optional "
    } else if field.oneof_index.is_some() {
        "one of "
    } else {
        ""
    };
    format!("{before}{name}")
}

/// What stands above each thing of a file, by its path in the descriptor.
struct Comments<'a>(HashMap<&'a [i32], &'a str>);

impl<'a> Comments<'a> {
    fn of(file: &'a FileDescriptorProto) -> Self {
        let locations = file.source_code_info.iter().flat_map(|info| &info.location);
        let commented =
            locations.filter_map(|it| Some((&*it.path, it.leading_comments.as_deref()?)));
        Self(commented.collect())
    }

    /// The comment's paragraphs, each on a line of its own.
    fn at(&self, path: &[i32]) -> String {
        let comment = self.0.get(path).copied().unwrap_or_default();
        let lines: Vec<&str> = comment.lines().map(str::trim).collect();
        let paragraphs = lines.split(|line| line.is_empty()).map(|lines| lines.join(" "));
        paragraphs.filter(|text| !text.is_empty()).collect::<Vec<_>>().join("\n\n")
    }
}
