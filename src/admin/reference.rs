//! `/reference` and `/openapi.json`: what callers of both fronts may rely on, of the version that runs.

use std::sync::LazyLock;

use maud::{DOCTYPE, Markup, html};

use crate::grpc::reference::{Reference, Service, Table};

/// The gRPC reference as a page; made once, since anybody may ask for it.
pub(super) static PAGE: LazyLock<String> = LazyLock::new(|| page().into_string());

fn page() -> Markup {
    let Reference { services, messages, enums } = Reference::of_this_program();
    html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width, initial-scale=1";
                meta name="color-scheme" content="light dark";
                title { "gRPC reference · alipayplus-cancel" }
                link rel="stylesheet" href="/reference/style.css";
            }
            body {
                header { span.name { "alipayplus-cancel" } nav aria-label="References" { a href="/openapi.json" { "OpenAPI of the JSON endpoint" } } }
                main {
                    h1 { "gRPC reference" }
                    p.hint { "Package " code { "alipayplus.cancel.v1" } ", version " (env!("CARGO_PKG_VERSION")) }
                    ul { @for service in &services { li { a href={ "#" (service.name) } { (service.name) } } } }
                    @for service in &services { (of_service(service)) }
                    h2 { "Messages" }
                    @for table in &messages { (of_table(table, "Field")) }
                    h2 { "Enums" }
                    @for table in &enums { (of_table(table, "Value")) }
                }
            }
        }
    }
}

fn of_service(service: &Service) -> Markup {
    html! {
        h2 id=(service.name) { (service.name) }
        (prose(&service.about))
        @for method in &service.methods {
            h3 id={ (service.name) "." (method.name) } { (service.name) "." (method.name) }
            (prose(&method.about))
            p.id {
                (kind(&method.request)) " → " @if method.streams { "stream of " } (kind(&method.response))
            }
        }
    }
}

fn of_table(table: &Table, what: &str) -> Markup {
    let typed = table.rows.iter().any(|row| !row.kind.is_empty());
    html! {
        h3 id=(table.name) { (table.name) }
        (prose(&table.about))
        @if !table.rows.is_empty() {
            div.wide tabindex="0" role="region" aria-label=(table.name) {
                table {
                    thead {
                        tr {
                            th scope="col" { (what) } @if typed { th scope="col" { "Type" } }
                            th.number scope="col" { "Number" } th scope="col" { "Is" }
                        }
                    }
                    tbody {
                        @for row in &table.rows {
                            tr {
                                td.id { (row.name) }
                                @if typed { td.id { (kind(&row.kind)) } }
                                td.number { (row.number) }
                                td { (prose(&row.about)) }
                            }
                        }
                    }
                }
            }
        }
    }
}

/// A type with a link, if it is one of ours.
fn kind(kind: &str) -> Markup {
    let (before, name) = kind.rsplit_once(' ').unwrap_or(("", kind));
    html! {
        @if !before.is_empty() { (before) " " }
        @if name.starts_with(char::is_uppercase) { a href={ "#" (name) } { (name) } } @else { (name) }
    }
}

/// The little Markdown that comments have: paragraphs, `code`, **strong**.
fn prose(text: &str) -> Markup {
    html! {
        @for paragraph in text.split("\n\n").filter(|it| !it.is_empty()) {
            p {
                @for (nth, piece) in paragraph.split('`').enumerate() {
                    @if nth % 2 == 1 { code { (piece) } } @else { (strong(piece)) }
                }
            }
        }
    }
}

fn strong(text: &str) -> Markup {
    html! {
        @for (nth, piece) in text.split("**").enumerate() {
            @if nth % 2 == 1 { strong { (piece) } } @else { (piece) }
        }
    }
}

/// The style, which the console has too.
pub(super) const CSS: &str = include_str!("console/style.css");
