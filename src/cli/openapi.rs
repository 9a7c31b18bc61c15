//! `openapi`: the JSON endpoint's contract, for whoever generates or tests against it.

use std::path::PathBuf;

use super::{USUAL_PREFIX, print_all, settings_of_signer};
use crate::bridge::openapi;

/// Prints the OpenAPI 3.1 document of the signed JSON endpoint
///
/// It is made from what the program enforces: paths, limits, result codes.
#[derive(Clone, Debug, clap::Args)]
#[command(after_help = "\
Example: alipayplus-cancel openapi >openapi.json")]
pub struct OpenApi {
    /// Settings, for their bridge.path_prefixes; without: /aps/api
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
}

impl OpenApi {
    /// Prints it.
    pub fn run(self) -> anyhow::Result<()> {
        let mut prefixes = vec![USUAL_PREFIX.to_owned()];
        if let Some(file) = &self.config {
            let loaded = settings_of_signer(file)?;
            let all = loaded.settings.bridge.path_prefixes.iter();
            prefixes = all.map(ToString::to_string).collect();
        }
        let prefixes: Vec<&str> = prefixes.iter().map(String::as_str).collect();
        print_all(format!("{:#}\n", openapi::document(&prefixes)).as_bytes())
    }
}
