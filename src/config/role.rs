//! What runs in a process, and so which settings it needs. One file may serve both tiers: what the other role needs is
//! read and checked, but may be missing, and no file that it names is opened.
//!
//! What a role cannot do without stands at the setting itself (`.of_cores()`, `.of_bridges()`); what must fit the role
//! or other settings stands here.

use super::{Core, Settings};

/// What runs in a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Both fronts and the core.
    All,
    /// gRPC and what is behind it: state, decisions, the feed.
    Core,
    /// The signed JSON front, which asks a core elsewhere. It has neither state nor the keys of tokens.
    Bridge,
}

impl Role {
    /// Whether the state is here.
    pub const fn has_core(self) -> bool {
        matches!(self, Self::All | Self::Core)
    }

    /// Whether Alipay+ calls here.
    pub const fn has_bridge(self) -> bool {
        matches!(self, Self::All | Self::Bridge)
    }

    /// Whether the file that this setting names is opened.
    pub(super) fn opens(self, setting: &str) -> bool {
        let section = setting.split_once('.').map_or(setting, |(section, _)| section);
        match section {
            "bridge" if setting.starts_with("bridge.core_tls") => matches!(self, Self::Bridge),
            "bridge" | "identity" | "clients" => self.has_bridge(),
            "grpc" | "store" | "tokens" => self.has_core(),
            _ => true,
        }
    }
}

impl Settings {
    /// What does not fit the role: the setting, and what to do.
    pub(super) fn unfit(&self, role: Role) -> Vec<(&'static str, String)> {
        let mut unfit = vec![];
        let cores = match (&self.bridge.core, role) {
            (Core::InProcess, Role::Bridge) => {
                unfit.push((
                    "bridge.core",
                    "a bridge has no core in its process: name the cores, as \
                     \"https://core-0:50051,https://core-1:50051\""
                        .to_owned(),
                ));
                return unfit;
            }
            (Core::Remote(_), Role::All) => {
                unfit.push((
                    "bridge.core",
                    "role `all` has its core in the process: use \"in-process\", or start with \
                     `--role bridge`"
                        .to_owned(),
                ));
                return unfit;
            }
            (Core::InProcess, _) | (_, Role::Core) => return unfit,
            (Core::Remote(cores), Role::Bridge) => cores,
        };
        let tls = cores.iter().any(|core| core.tls);
        if tls && self.bridge.core_tls.is_none() {
            unfit.push((
                "bridge.core",
                "https needs `bridge.core_tls`: the authorities of the cores, and our certificate"
                    .to_owned(),
            ));
        }
        unfit
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::config::Loaded;

    #[test]
    fn each_role_needs_what_it_uses_and_opens_no_other_file() {
        let load_as = |role, text: &str| {
            let file = Some((Path::new("x.toml"), text));
            Settings::load_text(role, file, None, std::iter::empty(), &[])
        };
        let wrong = |role, text: &str| load_as(role, text).expect_err(text).to_string();
        let files =
            |loaded: &Loaded| -> Vec<String> { loaded.files().map(|(name, _)| name).collect() };

        let core = "tokens.hash_key_files = [\"h\"]\n";
        let bridge = "[[identity.keys]]\nversion = \"1\"\nfile = \"k\"\n";
        let remote = "[bridge]\ncore = \"https://core-0:1,https://[2001:db8::1]:2\"\n";
        let tls = "[bridge.core_tls]\nca_file = \"a\"\ncert_file = \"c\"\nkey_file = \"l\"\n";
        let tier = format!("{bridge}{remote}{tls}");
        let both = format!("{core}{tier}");

        assert_eq!(files(&load_as(Role::Core, core).unwrap()), ["tokens.hash_key_files.0"]);
        assert_eq!(files(&load_as(Role::Core, &both).unwrap()), ["tokens.hash_key_files.0"]);
        let of_bridge = [
            "bridge.core_tls.ca_file",
            "bridge.core_tls.cert_file",
            "bridge.core_tls.key_file",
            "identity.keys.0.file",
        ];
        let loaded = load_as(Role::Bridge, &tier).unwrap();
        assert_eq!(files(&loaded), of_bridge);
        assert_eq!(loaded.warnings().len(), 1, "without clients: {:?}", loaded.warnings());
        let printed = loaded.print();
        assert_eq!(load_as(Role::Bridge, &printed).unwrap().settings, loaded.settings, "{printed}");

        let loaded = load_as(Role::Bridge, &both).unwrap();
        assert_eq!(files(&loaded), of_bridge);
        let warnings = loaded.warnings();
        assert!(
            warnings[1].starts_with("tokens.hash_key_files (x.toml:1): a bridge has"),
            "{warnings:?}"
        );

        assert!(wrong(Role::Core, bridge).contains("tokens.hash_key_files: expected at least one"));
        assert!(wrong(Role::Bridge, core).contains("identity.keys: expected at least one"));
        assert!(wrong(Role::Bridge, bridge).contains("bridge.core: a bridge has no core"));
        assert!(
            wrong(Role::Bridge, &format!("{bridge}{remote}")).contains("needs `bridge.core_tls`")
        );
        assert!(wrong(Role::All, &both).contains("bridge.core: role `all`"));

        // ports that the role does not bind may be the same
        let same = "[grpc]\nlisten = \"127.0.0.1:9090\"\n";
        assert!(wrong(Role::Core, &format!("{core}{same}")).contains("cannot both be had"));
        assert!(load_as(Role::Bridge, &format!("{tier}{same}")).is_ok());
    }
}
