//! The roles of a model's tensors.

macro_rules! roles {
    ($($role:ident $name:literal),* $(,)?) => {
        /// The role of a tensor.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        #[allow(missing_docs)]
        pub enum Role { $($role),* }

        impl Role {
            /// All roles.
            pub const ALL: &'static [Self] = &[$(Self::$role),*];

            /// Its name.
            pub const fn name(self) -> &'static str {
                match self { $(Self::$role => $name),* }
            }
        }
    };
}

roles! {
    TokenEmbd "token_embd",
    OutputNorm "output_norm",
    Output "output",
    OutputBias "output_bias",
    AttnNorm "attn_norm",
    AttnQ "attn_q",
    AttnQBias "attn_q_bias",
    AttnK "attn_k",
    AttnKBias "attn_k_bias",
    AttnV "attn_v",
    AttnVBias "attn_v_bias",
    AttnQNorm "attn_q_norm",
    AttnKNorm "attn_k_norm",
    AttnOutput "attn_output",
    AttnOutputBias "attn_output_bias",
    AttnPostNorm "attn_post_norm",
    FfnNorm "ffn_norm",
    FfnGate "ffn_gate",
    FfnGateBias "ffn_gate_bias",
    FfnUp "ffn_up",
    FfnUpBias "ffn_up_bias",
    FfnDown "ffn_down",
    FfnDownBias "ffn_down_bias",
    FfnGateInp "ffn_gate_inp",
    FfnGateExps "ffn_gate_exps",
    FfnUpExps "ffn_up_exps",
    FfnDownExps "ffn_down_exps",
    FfnPostNorm "ffn_post_norm",
}

impl Role {
    /// The role with that name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|role| role.name() == name)
    }

    /// Whether every layer has a tensor of this role.
    pub fn in_layers(self) -> bool {
        !matches!(self, Self::TokenEmbd | Self::OutputNorm | Self::Output | Self::OutputBias)
    }
}
