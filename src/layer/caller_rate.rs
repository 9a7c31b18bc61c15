//! How many calls each caller may make in a time, by rules over methods.
//!
//! A rule counts each caller apart: whom his certificate names, or where he comes from. All rules that fit count.

use std::{
    hash::{BuildHasher as _, RandomState},
    sync::Arc,
};

use arc_swap::ArcSwap;

use super::{
    Refusal,
    gate::Gate,
    identity::{Methods, is_open},
    overload::Sourced,
    rate_limit::{Keyed, Rate},
};

/// A call of a method.
pub trait Called: Sourced {
    /// `/package.Service/Method`
    fn path(&self) -> &str;

    /// Whether one of these names is the caller's.
    fn has_name(&self, names: &[Box<str>]) -> bool;
}

/// Which calls have which rate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    /// Subject alternative names; empty: everybody.
    pub sans: Vec<Box<str>>,
    /// Of these methods together.
    pub methods: Vec<Methods>,
    /// Of each caller.
    pub rate: Rate,
}

struct Counted {
    rule: Rule,
    callers: Arc<Keyed>,
}

/// The gate; clones share what was counted.
#[derive(Clone)]
pub struct CallerRates {
    rules: Arc<ArcSwap<Vec<Counted>>>,
    hasher: RandomState,
}

impl CallerRates {
    /// A gate with these rules.
    pub fn new(rules: Vec<Rule>) -> Self {
        let rules = narrowest_first(rules);
        let count = |rule: Rule| Counted { callers: Arc::new(Keyed::new(rule.rate)), rule };
        let rules = rules.into_iter().map(count).collect();
        Self { rules: Arc::new(ArcSwap::from_pointee(rules)), hasher: RandomState::new() }
    }

    /// Other rules from now on; of a rule that stays, what was taken stays taken.
    pub fn reload(&self, rules: Vec<Rule>) {
        let (before, rules) = (self.rules.load(), narrowest_first(rules));
        let inherit = |rule: Rule| {
            let same = before.iter().find(|counted| counted.rule == rule);
            let callers =
                same.map_or_else(|| Arc::new(Keyed::new(rule.rate)), |it| Arc::clone(&it.callers));
            Counted { rule, callers }
        };
        self.rules.store(Arc::new(rules.into_iter().map(inherit).collect()));
    }
}

/// So that a call which a narrow rule refuses takes nothing from a wide one.
fn narrowest_first(mut rules: Vec<Rule>) -> Vec<Rule> {
    let width = |methods: &Methods| match methods {
        Methods::Method(..) => 0,
        Methods::Service(_) => 1,
        Methods::All => 2,
    };
    rules.sort_by_key(|rule| rule.methods.iter().map(width).max());
    rules
}

impl<R: Called> Gate<R> for CallerRates {
    type Held = ();

    fn enter(&self, call: &R) -> Result<(), Refusal> {
        let rules = self.rules.load();
        if rules.is_empty() || is_open(call.path()) {
            return Ok(());
        }
        let Some((service, method)) = Methods::of(call.path()) else { return Ok(()) };
        let caller = match call.claims() {
            Some(name) => self.hasher.hash_one(name),
            None => self.hasher.hash_one(call.source()),
        };
        let concerns = |counted: &&Counted| {
            let rule = &counted.rule;
            (rule.sans.is_empty() || call.has_name(&rule.sans))
                && rule.methods.iter().any(|methods| methods.contain(service, method))
        };
        rules.iter().filter(concerns).try_for_each(|counted| counted.callers.take(caller))
    }
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroU32;

    use super::*;
    use crate::layer::budget::Source;

    struct Call(&'static str, &'static str);

    impl Sourced for Call {
        fn source(&self) -> Source {
            Source::of(1)
        }

        fn claims(&self) -> Option<&str> {
            Some(self.0)
        }
    }

    impl Called for Call {
        fn path(&self) -> &str {
            self.1
        }

        fn has_name(&self, names: &[Box<str>]) -> bool {
            names.iter().any(|name| **name == *self.0)
        }
    }

    const ASK: &str = "/p.TokenService/IntrospectToken";
    const RECORD: &str = "/p.TokenService/RecordToken";

    fn rule(sans: &[&str], methods: Methods, burst: u32) -> Rule {
        let burst = NonZeroU32::new(burst).unwrap();
        let rate = Rate { per_second: NonZeroU32::MIN, burst };
        Rule { sans: sans.iter().map(|&san| san.into()).collect(), methods: vec![methods], rate }
    }

    #[test]
    fn each_caller_is_counted_apart_and_every_rule_that_fits_counts() {
        let one = || Methods::Method("TokenService".into(), "IntrospectToken".into());
        let rules = vec![rule(&[], Methods::All, 3), rule(&["b"], one(), 1)];
        let gate = CallerRates::new(rules.clone());
        let may = |who, path| gate.enter(&Call(who, path)).is_ok();
        assert!(may("a", ASK) && may("a", ASK) && may("a", RECORD));
        assert!(!may("a", ASK), "three in all");
        assert!(may("a", "/grpc.health.v1.Health/Check"), "whoever is busy is not dead");
        assert!(may("b", ASK), "another caller");
        assert!(!may("b", ASK), "b may ask once");
        assert!(may("b", RECORD) && may("b", RECORD), "what was refused took nothing of the rest");
        gate.reload(rules);
        assert!(!may("b", ASK), "a reload gives nothing back");
        gate.reload(vec![rule(&[], Methods::All, 4)]);
        assert!(may("b", ASK), "another rule begins anew");
    }
}
