//! The instruction sets, and the choice of one.

use crate::error::QuantError;
use std::sync::OnceLock;

/// An instruction set that the kernels are compiled for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Isa {
    /// Plain Rust, on every CPU: the oracle of the others.
    Scalar,
    /// AVX2, FMA, F16C, BMI1 and POPCNT.
    Avx2,
    /// AVX-512 F, BW, VL and DQ.
    Avx512,
}

impl Isa {
    /// All instruction sets, slowest first.
    pub const ALL: [Self; 3] = [Self::Scalar, Self::Avx2, Self::Avx512];

    /// The name that `Q4HIFI_ISA` takes.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Scalar => "scalar",
            Self::Avx2 => "avx2",
            Self::Avx512 => "avx512",
        }
    }

    /// Whether this CPU has it.
    pub fn is_available(self) -> bool {
        match self {
            Self::Scalar => true,
            #[cfg(all(target_arch = "x86_64", not(portable)))]
            Self::Avx2 => {
                is_x86_feature_detected!("avx2")
                    && is_x86_feature_detected!("fma")
                    && is_x86_feature_detected!("f16c")
                    && is_x86_feature_detected!("bmi1")
                    && is_x86_feature_detected!("popcnt")
            }
            #[cfg(all(target_arch = "x86_64", not(portable)))]
            Self::Avx512 => {
                Self::Avx2.is_available()
                    && is_x86_feature_detected!("avx512f")
                    && is_x86_feature_detected!("avx512bw")
                    && is_x86_feature_detected!("avx512vl")
                    && is_x86_feature_detected!("avx512dq")
            }
            #[cfg(not(all(target_arch = "x86_64", not(portable))))]
            _ => false,
        }
    }

    /// The instruction sets that this CPU has, slowest first.
    pub fn available() -> impl Iterator<Item = Self> + Clone {
        Self::ALL.into_iter().filter(|isa| isa.is_available())
    }

    /// The fastest instruction set that this CPU has.
    pub fn best() -> Self {
        Self::available().last().unwrap_or(Self::Scalar)
    }

    /// The instruction set in use: the one that the environment variable `Q4HIFI_ISA` names, or else [`Self::best`].
    ///
    /// The variable is read once per process. Fails if it names no instruction set, or one that this CPU lacks.
    pub fn active() -> Result<Self, QuantError> {
        static ACTIVE: OnceLock<Result<Isa, QuantError>> = OnceLock::new();
        ACTIVE.get_or_init(|| Self::wanted(std::env::var("Q4HIFI_ISA").ok().as_deref())).clone()
    }

    fn wanted(name: Option<&str>) -> Result<Self, QuantError> {
        let Some(name) = name.filter(|name| !name.is_empty()) else { return Ok(Self::best()) };
        let found = Self::ALL.into_iter().find(|isa| isa.name().eq_ignore_ascii_case(name));
        found.filter(|isa| isa.is_available()).ok_or_else(|| QuantError::IsaNotAvailable {
            name: name.to_owned(),
            available: Self::available().map(Self::name).collect(),
        })
    }
}

/// Whether the CPU has AVX-512 VNNI. Some AVX-512 kernels are compiled with and without it.
#[cfg(all(target_arch = "x86_64", not(portable)))]
pub(crate) fn has_vnni() -> bool {
    is_x86_feature_detected!("avx512vnni")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_environment_may_choose_what_there_is() {
        assert_eq!(Isa::wanted(None), Ok(Isa::best()));
        assert_eq!(Isa::wanted(Some("")), Ok(Isa::best()));
        assert_eq!(Isa::wanted(Some("Scalar")), Ok(Isa::Scalar));
        let error = Isa::wanted(Some("neon9")).unwrap_err();
        let names = Isa::available().map(Isa::name).collect::<Vec<_>>();
        let expected = format!("Q4HIFI_ISA is \"neon9\"; this CPU has {}", names.join(", "));
        assert_eq!(error.to_string(), expected);
    }
}
