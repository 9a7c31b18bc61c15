//! Tests of the subcommands, through their command lines.

use std::{fs, path::Path};

use anyhow::Result;
use clap::{CommandFactory as _, Parser};

use super::Keys;
use crate::{
    bridge::keys::{PrivateKey, PublicKey},
    cli::exit_status,
};

#[derive(Parser)]
struct Binary {
    #[command(flatten)]
    keys: Keys,
}

struct Ran {
    out: String,
    notes: String,
    result: Result<()>,
}

impl Ran {
    fn status(&self) -> u8 {
        self.result.as_ref().err().map_or(0, exit_status)
    }
}

fn keys(arguments: &[&str]) -> Ran {
    let arguments = ["keys"].iter().chain(arguments);
    let keys = Binary::try_parse_from(arguments).unwrap().keys;
    let [mut out, mut notes] = [Vec::new(), Vec::new()];
    let result = keys.print(&mut out, &mut notes);
    let [out, notes] = [out, notes].map(|bytes| String::from_utf8(bytes).unwrap());
    Ran { out, notes, result }
}

/// A directory with a generated pair `a`.
fn with_pair() -> (tempfile::TempDir, String) {
    let dir = tempfile::tempdir().unwrap();
    let prefix = path(dir.path(), "a");
    assert_eq!(keys(&["generate", "--out", &prefix]).status(), 0);
    (dir, prefix)
}

fn path(dir: &Path, name: &str) -> String {
    dir.join(name).to_str().unwrap().to_owned()
}

#[test]
fn the_command_line_is_well_formed_and_teaches() {
    let mut command = Binary::command();
    command.clone().debug_assert();
    for name in ["generate", "show", "check"] {
        let help = command.find_subcommand_mut(name).unwrap().render_long_help().to_string();
        assert!(help.contains("Example"), "{help}");
    }
}

#[test]
fn generate_writes_a_pair_and_prints_the_consoles_line() {
    let dir = tempfile::tempdir().unwrap();
    let ran = keys(&["generate", "--out", &path(dir.path(), "wallet.v1")]);
    assert_eq!(ran.status(), 0);
    let private_file = dir.path().join("wallet.v1.private.pem");
    let private = PrivateKey::parse(fs::read(&private_file).unwrap()).unwrap();
    let public = PublicKey::parse(fs::read(dir.path().join("wallet.v1.public.pem")).unwrap());
    assert_eq!(Ok(private.public()), public.as_ref());
    assert_eq!(PublicKey::parse(ran.out.lines().last().unwrap()), public);
    assert!(!ran.out.contains("PRIVATE"));
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 2);
}

#[cfg(unix)]
#[test]
fn a_private_key_file_is_its_owners_alone_also_when_overwritten() {
    use std::os::unix::fs::PermissionsExt as _;

    let (_dir, prefix) = with_pair();
    let file = format!("{prefix}.private.pem");
    let mode = || fs::metadata(&file).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(), 0o600);
    fs::set_permissions(&file, fs::Permissions::from_mode(0o644)).unwrap();
    assert_eq!(keys(&["generate", "--force", "--out", &prefix]).status(), 0);
    assert_eq!(mode(), 0o600);
}

#[test]
fn generate_overwrites_only_when_forced() {
    let (dir, prefix) = with_pair();
    let file = format!("{prefix}.private.pem");
    let before = fs::read(&file).unwrap();
    let ran = keys(&["generate", "--out", &prefix]);
    assert_eq!(ran.status(), 2);
    assert!(ran.result.unwrap_err().to_string().contains("--force"));
    assert_eq!(fs::read(&file).unwrap(), before);
    assert_eq!(keys(&["generate", "--out", &prefix, "--force"]).status(), 0);
    assert_ne!(fs::read(&file).unwrap(), before);
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 2);
}

#[test]
fn generate_into_a_directory_names_the_files_itself() {
    let dir = tempfile::tempdir().unwrap();
    assert_eq!(keys(&["generate", "--out", &path(dir.path(), "")]).status(), 0);
    assert!(dir.path().join("alipayplus-cancel.private.pem").is_file());
}

#[test]
fn generate_makes_the_folder_unless_a_file_is_in_its_place() {
    let dir = tempfile::tempdir().unwrap();
    assert_eq!(keys(&["generate", "--out", &path(dir.path(), "absent/a")]).status(), 0);
    assert!(dir.path().join("absent/a.private.pem").is_file());
    let below_a_file = path(dir.path(), "absent/a.public.pem/b");
    assert_eq!(keys(&["generate", "--out", &below_a_file]).status(), 2);
}

#[test]
fn show_prints_the_public_part_of_any_file() {
    let (_dir, prefix) = with_pair();
    let [private, public] = ["private", "public"].map(|half| format!("{prefix}.{half}.pem"));
    let expected = PublicKey::parse(fs::read(&public).unwrap()).unwrap();
    for file in [&private, &public] {
        let all = keys(&["show", file]);
        assert_eq!(all.status(), 0);
        assert!(!all.out.contains("PRIVATE"));
        assert!(all.out.contains(&expected.fingerprint().to_string()));
        assert!(all.out.contains(&expected.spki_base64()));
        for form in ["spki-pem", "pkcs1-pem", "bare", "bare-pkcs1"] {
            let ran = keys(&["show", file, "--form", form]);
            assert_eq!(PublicKey::parse(&ran.out), Ok(expected.clone()), "{form}");
            assert!(ran.notes.contains("2048 bits"));
        }
    }
}

#[test]
fn show_prints_a_private_key_only_when_asked_to() {
    let (_dir, prefix) = with_pair();
    let [private, public] = ["private", "public"].map(|half| format!("{prefix}.{half}.pem"));
    for form in ["pkcs8-pem", "pkcs1-pem", "bare", "bare-pkcs1"] {
        let ran = keys(&["show", &private, "--private", "--form", form]);
        assert!(PrivateKey::parse(&ran.out).is_ok(), "{form}");
    }
    assert!(keys(&["show", &private, "--private"]).out.contains("BEGIN RSA PRIVATE KEY"));
    assert_eq!(keys(&["show", &private, "--form", "pkcs8-pem"]).status(), 2);
    assert_eq!(keys(&["show", &private, "--private", "--form", "spki-pem"]).status(), 2);
    assert_eq!(keys(&["show", &public, "--private"]).status(), 2);
}

#[test]
fn check_tells_a_pair_from_strangers_and_from_unreadable_files() {
    let (dir, _prefix) = with_pair();
    let b = path(dir.path(), "b");
    assert_eq!(keys(&["generate", "--out", &b]).status(), 0);
    let check = |private: &str, public: &str| {
        let [private, public] = [private, public].map(|name| path(dir.path(), name));
        keys(&["check", "--private", &private, "--public", &public])
    };
    let pair = check("a.private.pem", "a.public.pem");
    assert_eq!(pair.status(), 0);
    assert!(pair.out.contains("PKCS#8 (private) as PEM"));
    assert!(pair.out.contains("SPKI (public) as PEM"));
    assert_eq!(check("a.private.pem", "b.public.pem").status(), 1);
    assert_eq!(check("a.public.pem", "a.private.pem").status(), 2);
    assert_eq!(check("a.private.pem", "a.private.pem").status(), 2);
    assert_eq!(check("a.private.pem", "absent.pem").status(), 2);
    fs::write(dir.path().join("junk"), "no key").unwrap();
    assert_eq!(check("junk", "a.public.pem").status(), 2);
}
