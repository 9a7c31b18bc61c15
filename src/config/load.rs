//! From file, environment and flags to settings; and what is odd about them as a whole.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    path::{Path, PathBuf},
    time::Duration,
};

use super::{
    ConfigError, Console, ConsoleAccess, Origin, Problem, Role, Settings, now, overlay, print,
    read::{Effective, Place, Report, Setting},
    tree::{self, Node, Way},
};

/// Settings, and where each came from.
#[derive(Clone, Debug)]
pub struct Loaded {
    /// The settings.
    pub settings: Settings,
    /// What they are for.
    pub role: Role,
    pub(super) effective: Vec<Effective>,
    files: Vec<(Way, PathBuf)>,
}

impl Settings {
    /// Reads the settings: the file if there is one, over it the environment, over it the flags (`limits.queue` and
    /// its value, written as an environment variable would say it).
    pub fn load(
        file: Option<&Path>,
        env: impl Iterator<Item = (String, String)>,
        flags: &[(String, String)],
    ) -> Result<Loaded, ConfigError> {
        Self::load_as(Role::All, file, env, flags)
    }

    /// The same for a process of this role: what the other one needs may be missing.
    pub fn load_as(
        role: Role,
        file: Option<&Path>,
        env: impl Iterator<Item = (String, String)>,
        flags: &[(String, String)],
    ) -> Result<Loaded, ConfigError> {
        let here = std::env::current_dir().ok();
        let Some(path) = file else { return Self::load_text(role, None, here, env, flags) };
        let origin = Origin::File { path: path.to_owned(), line: 0 };
        let cannot_read = |error: &dyn std::fmt::Display| {
            let text = format!("cannot be read: {error}; name the file with --config");
            ConfigError::new(vec![Problem::new(&origin, &Way::default(), text)])
        };
        let bytes = std::fs::read(path).map_err(|error| cannot_read(&error))?;
        let text = String::from_utf8(bytes)
            .map_err(|error| cannot_read(&format!("not UTF-8 ({})", error.utf8_error())))?;
        Self::load_text(role, Some((path, &text)), here, env, flags)
    }

    /// Reads the settings from a text alone, as tests do. Names of files stay as they are.
    pub fn from_toml_str(text: &str) -> Result<Self, ConfigError> {
        let file = Some((Path::new("settings.toml"), text));
        Self::load_text(Role::All, file, None, std::iter::empty(), &[])
            .map(|loaded| loaded.settings)
    }

    pub(super) fn load_text(
        role: Role,
        file: Option<(&Path, &str)>,
        here: Option<PathBuf>,
        env: impl Iterator<Item = (String, String)>,
        flags: &[(String, String)],
    ) -> Result<Loaded, ConfigError> {
        let mut problems = vec![];
        let mut root = match file {
            None => Node::empty_table(Origin::Default),
            Some((path, text)) => tree::document(text, path).map_err(|wrong| {
                let origin = Origin::File { path: path.to_owned(), line: wrong.line };
                let text = format!("this is not TOML: {}", wrong.message);
                ConfigError::new(vec![Problem::new(&origin, &Way::default(), text)])
            })?,
        };
        let shape = Self::shape();
        overlay::environment_over(&mut root, &shape, env, &mut problems);
        overlay::flags_over(&mut root, &shape, flags, &mut problems);
        shape.unknown_keys(&root, &mut problems);

        // a folder is told from the current one, unless nobody says which that is
        let base = file
            .and_then(|(path, _)| path.parent())
            .and_then(|folder| here.as_ref().map(|here| here.join(folder)));
        let mut report = Report { role, base, here, problems, effective: vec![], files: vec![] };
        let around = root.origin.clone();
        let place =
            Place { way: Way::default(), node: Some(&root), around: &around, expected: None };
        let settings = Self::read(&place, &mut report);
        if let Some(settings) = &settings {
            settings.contradictions(role, &around, &mut report);
        }
        match settings {
            Some(settings) if report.problems.is_empty() => {
                let opened = |(way, _): &(Way, PathBuf)| role.opens(&way.to_string());
                let files = report.files.into_iter().filter(opened).collect();
                Ok(Loaded { settings, role, effective: report.effective, files })
            }
            Some(_) | None => Err(ConfigError::new(report.problems)),
        }
    }

    /// What each setting allows, and all of them together do not.
    fn contradictions(&self, role: Role, around: &Origin, report: &mut Report) {
        let mut say = |settings: [&str; 2], text: String| {
            let at = |name: &str| {
                report.effective.iter().find(|value| value.way.to_string() == name).cloned()
            };
            // point to the one that somebody set
            let places = settings.into_iter().filter_map(at);
            let (set, default): (Vec<_>, Vec<_>) =
                places.partition(|value| value.origin != Origin::Default);
            let (way, origin) = set.into_iter().chain(default).next().map_or_else(
                || (Way::default(), around.clone()),
                |value| (value.way, value.origin),
            );
            report.problems.push(Problem::new(&origin, &way, text));
        };
        for (setting, text) in self.unfit(role) {
            say([setting, setting], text);
        }
        for (budget, name) in [
            (self.limits.body_bytes_in_flight_per_source, "body_bytes_in_flight_per_source"),
            (self.limits.body_bytes_in_flight, "body_bytes_in_flight"),
        ] {
            let longest = self.limits.body_bytes;
            if longest > budget {
                let text = format!(
                    "a body may have {longest} bytes (`limits.body_bytes`), but `limits.{name}` is \
                     {budget}, so it would always be turned away: make the one at most the other"
                );
                say(["limits.body_bytes", &format!("limits.{name}")], text);
            }
        }
        if !self.grpc.callers.is_empty() && self.grpc.tls.is_none() {
            let text =
                "callers prove who they are by certificate, so `grpc.tls` must be set".to_owned();
            say(["grpc.callers.0.sans", "grpc.listen"], text);
        }
        let Console { access, listen, tls, .. } = &self.console;
        let by_certificate = *access == ConsoleAccess::Certificate;
        if by_certificate && (listen.is_none() || tls.is_none()) {
            let text =
                "`certificate` needs `console.listen`, since probes have no certificate, and \
                 `console.tls`, which says whose are taken"
                    .to_owned();
            say(["console.access", "console.listen"], text);
        }
        if !by_certificate && tls.is_some() {
            let text =
                "`console.tls` says whose certificates are taken, so `console.access` must be \
                 `certificate`"
                    .to_owned();
            say(["console.tls.cert_file", "console.access"], text);
        }
        let console_at = listen.filter(|_| *access != ConsoleAccess::Off);
        let listeners = [
            ("grpc.listen", self.grpc.listen, role.has_core()),
            ("bridge.listen", self.bridge.listen, role.has_bridge()),
            ("admin.listen", self.admin.listen, true),
        ];
        let listeners = listeners
            .into_iter()
            .chain(console_at.map(|address| ("console.listen", address, true)));
        let listeners: Vec<_> = listeners
            .into_iter()
            .filter_map(|(name, address, is_bound)| is_bound.then_some((name, address)))
            .collect();
        for (index, (name, one)) in listeners.iter().enumerate() {
            let later = listeners.iter().skip(index.saturating_add(1));
            for (other_name, other) in later.filter(|(_, other)| collide(*one, *other)) {
                let text = format!(
                    "`{name}` ({one}) and `{other_name}` ({other}) cannot both be had: \
                     give one another port"
                );
                say([*other_name, *name], text);
            }
        }
    }
}

fn collide(one: SocketAddr, other: SocketAddr) -> bool {
    let same_ip =
        one.ip() == other.ip() || one.ip().is_unspecified() || other.ip().is_unspecified();
    one.port() != 0 && one.port() == other.port() && same_ip
}

impl Loaded {
    /// Where the setting of this name (`clients.0.rate.burst`) came from; `None` if it is not in effect.
    pub fn origin(&self, setting: &str) -> Option<&Origin> {
        let found = self.effective.iter().find(|value| value.way.to_string() == setting);
        found.map(|value| &value.origin)
    }

    /// Every setting in effect, by name, and where it came from; in the order of [`Settings`].
    pub fn origins(&self) -> impl Iterator<Item = (String, &Origin)> {
        self.effective.iter().map(|value| (value.way.to_string(), &value.origin))
    }

    /// Every file that a setting names and the role opens, by the setting's name.
    pub fn files(&self) -> impl Iterator<Item = (String, &Path)> {
        self.files.iter().map(|(way, file)| (way.to_string(), file.as_path()))
    }

    /// The settings that differ from those of another load, by name, and where each is set now (or was).
    pub fn changed_since<'l>(&'l self, before: &'l Self) -> Vec<(String, &'l Origin)> {
        fn by_name(loaded: &Loaded) -> BTreeMap<String, &Effective> {
            loaded.effective.iter().map(|value| (value.way.to_string(), value)).collect()
        }
        let (now, then) = (by_name(self), by_name(before));
        let differs = |name: &String| {
            let literal =
                |of: &BTreeMap<String, &Effective>| of.get(name).map(|it| &it.literal).cloned();
            literal(&now) != literal(&then)
        };
        let names: BTreeSet<&String> = now.keys().chain(then.keys()).collect();
        let origin = |name: &String| now.get(name).or_else(|| then.get(name)).map(|it| &it.origin);
        let changed = names.into_iter().filter(|name| differs(name));
        changed.filter_map(|name| Some((name.clone(), origin(name)?))).collect()
    }

    /// The settings in effect as TOML that reads back, each with its origin behind it, without secrets.
    pub fn print(&self) -> String {
        print::print(&self.effective)
    }

    /// What works, but may not be meant. To be said loudly at start.
    pub fn warnings(&self) -> Vec<String> {
        let Settings { grpc, bridge, clients, limits, tokens, store, .. } = &self.settings;
        let (core, front) = (self.role.has_core(), self.role.has_bridge());
        let mut warnings = vec![];
        let mut warn = |setting: &str, holds: bool, text: String| {
            if holds {
                let origin = self.origin(setting).cloned().unwrap_or(Origin::Default);
                warnings.push(format!("{setting} ({origin}): {text}"));
            }
        };
        let open = |listen: SocketAddr| !listen.ip().to_canonical().is_loopback();
        warn(
            "grpc.listen",
            core && open(grpc.listen) && grpc.tls.is_none(),
            format!(
                "{} is reached from other machines WITHOUT TLS: whoever reaches it may cancel payments \
                 and read tokens' states; set `grpc.tls`, or let only a proxy that does reach it",
                grpc.listen
            ),
        );
        warn(
            "bridge.listen",
            front && open(bridge.listen) && bridge.tls.is_none(),
            format!(
                "{} is reached from other machines WITHOUT TLS: tokens pass in the clear; set \
                 `bridge.tls`, or let only a proxy that does reach it",
                bridge.listen
            ),
        );
        warn(
            "clients",
            front && clients.is_empty(),
            "there is none, so every signed request is answered INVALID_CLIENT".to_owned(),
        );
        for (index, caller) in grpc.callers.iter().enumerate() {
            let let_in = grpc.tls.as_ref().map_or(&[][..], |tls| &tls.allowed_sans);
            let known = caller.sans.iter().any(|san| let_in.contains(san));
            warn(
                &format!("grpc.callers.{index}.sans"),
                !let_in.is_empty() && !known,
                "none of them is in `grpc.tls.allowed_sans`, so who has no other name cannot connect"
                    .to_owned(),
            );
        }
        for (setting, is_set) in [
            ("tokens.hash_key_files", !tokens.hash_key_files.is_empty()),
            ("store.password_file", store.password_file.is_some()),
        ] {
            let text = "a bridge has no use for the core's secrets: keep them off this machine";
            warn(setting, !core && is_set, text.to_owned());
        }
        let now = now();
        for (index, client) in clients.iter().enumerate() {
            warn(
                &format!("clients.{index}.id"),
                front && client.keys.iter().all(|key| key.has_ended(now)),
                format!(
                    "every key of `{}` has ended, so all of its requests are refused",
                    client.id
                ),
            );
        }
        for (setting, deadline, patience_s) in [
            ("limits.cancel_payment_deadline", limits.cancel_payment_deadline, 8),
            ("limits.cancel_token_deadline", limits.cancel_token_deadline, 5),
        ] {
            warn(
                setting,
                deadline >= Duration::from_secs(patience_s),
                format!("Alipay+ waits {patience_s} s and then sends the request again"),
            );
        }
        warn(
            "limits.idle_timeout",
            limits.idle_timeout <= Duration::from_secs(30),
            "Alipay+ keeps idle connections for 30 s: end them later, or requests are lost"
                .to_owned(),
        );
        warn(
            "limits.body_bytes",
            limits.body_bytes < 262_144,
            "a legal request can have 240 KB and would be refused for good: make it at least 262144"
                .to_owned(),
        );
        warnings
    }
}
