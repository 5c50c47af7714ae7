package adapter

import (
	"fmt"
	"math"
	"slices"
	"strings"

	"github.com/loratool/loratool/internal/strictjson"
)

// maxRank bounds r and its patterns: beyond the width of any layer a rank is a
// mistake or an attack on memory.
const maxRank = 65536

// Config is what an adapter_config.json says, checked.
type Config struct {
	Type string // peft_type

	Rank         int64
	Alpha        float64
	RSLoRA       bool
	RankPattern  Patterns[int64]
	AlphaPattern Patterns[float64]

	Targets          Matcher // target_modules
	Exclude          Matcher // exclude_modules
	FeedForward      Matcher // feedforward_modules of IA3
	TargetParameters []string
	LayersToUse      []int64 // layers_to_transform; nil is all
	LayersPattern    []string

	Bias             string // none, all, <kind>_only
	LoRABias         bool
	DoRA             bool
	KaSA             bool
	EnsureTied       bool
	ModulesToSave    []string
	TokenIndices     map[string][]int64 // by module; "" is the input embedding
	LayerReplication [][2]int64
	Init             string // init_lora_weights if it is a name
	SaveProjection   bool
	ProjectionKey    int64
	PrunedRanks      map[string]int64 // AdaLoRA: how many ranks of a module are left
	Unknown          []string         // keys with a value that nothing here understands
	raw              *strictjson.Object
}

// ParseConfig checks an adapter_config.json. It fails for what can't be merged
// and says why.
func ParseConfig(o *strictjson.Object) (*Config, error) {
	c := &Config{raw: o}
	var err error
	if c.Type, err = o.String("peft_type"); err != nil {
		return nil, err
	}
	kind, err := lookupKind(c.Type)
	if err != nil {
		return nil, err
	}
	if err := c.refuseVariants(); err != nil {
		return nil, err
	}
	for _, read := range []func() error{c.readRank, c.readPatterns, c.readTargets, c.readLayers, c.readContent, c.readInit, c.readKind} {
		if err := read(); err != nil {
			return nil, err
		}
	}
	c.findUnknown(kind)
	return c, nil
}

// refuseVariants stops at the LoRA variants whose result is not a weight.
func (c *Config) refuseVariants() error {
	for _, v := range []struct{ key, name, reason string }{
		{"alora_invocation_tokens", "aLoRA", "it acts only after its invocation tokens: no single set of weights computes the same"},
		{"arrow_config", "Arrow", "it routes between adapters by the input: no single set of weights computes the same"},
	} {
		if c.set(v.key) {
			return &UnmergeableError{v.name, v.reason}
		}
	}
	for _, v := range []struct{ key, name string }{
		{"use_qalora", "QA-LoRA"}, {"use_bdlora", "BD-LoRA"}, {"megatron_config", "Megatron tensor parallelism"},
	} {
		if c.set(v.key) {
			return &UnsupportedError{v.name}
		}
	}
	if c.Type == "LORA" {
		return nil
	}
	// Variants of LoRA have no meaning for the other types; what they would be
	// read as is anybody's guess.
	for _, key := range []string{"use_dora", "lora_bias", "kasa_config"} {
		if c.set(key) {
			return fmt.Errorf("%s is set, which %s adapters do not have", key, c.Type)
		}
	}
	return nil
}

// set reports whether a key has a value that switches something on.
func (c *Config) set(key string) bool {
	v, ok := c.raw.Get(key)
	return ok && !isOff(v)
}

// isOff reports whether a value is one of Python's false ones.
func isOff(v strictjson.Value) bool {
	switch v.Kind() {
	case strictjson.KindNull:
		return true
	case strictjson.KindBool:
		b, _ := v.Bool()
		return !b
	case strictjson.KindString:
		s, _ := v.Text()
		return s == ""
	case strictjson.KindNumber:
		f, err := v.Float()
		return err == nil && f == 0
	case strictjson.KindArray:
		items, _ := v.Items()
		return len(items) == 0
	default:
		o, _ := v.Object()
		return o.Len() == 0
	}
}

func (c *Config) readRank() error {
	rankKey, alphaKey := "r", "lora_alpha"
	switch c.Type {
	case "LOHA", "LOKR":
		alphaKey = "alpha"
	case "ADALORA":
		rankKey = "init_r" // ranknum keeps the rank at the start, also after pruning
	case "IA3", "LN_TUNING", "TRAINABLE_TOKENS":
		return nil
	}
	var err error
	if c.Rank, err = c.raw.Int(rankKey); err != nil {
		return err
	}
	if c.Rank < 1 || c.Rank > maxRank {
		return fmt.Errorf("%s is %d, not within 1..%d", rankKey, c.Rank, maxRank)
	}
	if c.Type == "VERA" {
		return nil
	}
	if c.Alpha, err = c.raw.Float(alphaKey); err != nil {
		return err
	}
	if math.IsInf(c.Alpha, 0) || math.IsNaN(c.Alpha) {
		return fmt.Errorf("%s is not finite", alphaKey)
	}
	for _, f := range []struct {
		key string
		dst *bool
	}{{"use_rslora", &c.RSLoRA}, {"use_dora", &c.DoRA}, {"lora_bias", &c.LoRABias}} {
		if *f.dst, _, err = c.raw.OptBool(f.key); err != nil {
			return err
		}
	}
	c.KaSA = c.set("kasa_config")
	if c.KaSA && c.DoRA {
		return &UnsupportedError{"KaSA with DoRA"}
	}
	return nil
}

func (c *Config) readPatterns() error {
	if c.Type == "ADALORA" {
		return c.readPrunedRanks()
	}
	ranks, ok, err := c.raw.OptObject("rank_pattern")
	if err != nil {
		return err
	}
	if ok {
		for key, v := range ranks.All() {
			r, err := v.Int()
			if err != nil {
				return fmt.Errorf("rank_pattern %q: %w", key, err)
			}
			if r < 1 || r > maxRank {
				return fmt.Errorf("rank_pattern %q: rank %d is not within 1..%d", key, r, maxRank)
			}
			c.RankPattern.add(key, r)
		}
	}
	alphas, ok, err := c.raw.OptObject("alpha_pattern")
	if err != nil {
		return err
	}
	if ok {
		for key, v := range alphas.All() {
			a, err := v.Float()
			if err != nil {
				return fmt.Errorf("alpha_pattern %q: %w", key, err)
			}
			c.AlphaPattern.add(key, a)
		}
	}
	if len(c.AlphaPattern.Broken) > 0 {
		// A rank shows in the tensors, alpha does not.
		return fmt.Errorf("alpha_pattern %q can't be evaluated here, so the scale of the modules is not known", c.AlphaPattern.Broken[0])
	}
	return nil
}

func (c *Config) readPrunedRanks() error {
	masks, ok, err := c.raw.OptObject("rank_pattern")
	if err != nil || !ok {
		return err
	}
	c.PrunedRanks = make(map[string]int64)
	for key, v := range masks.All() {
		module, _, ok := strings.Cut(strings.TrimPrefix(key, "base_model.model."), ".lora_E")
		if _, twice := c.PrunedRanks[module]; !ok || twice {
			return fmt.Errorf("rank_pattern %q is not the lora_E of one module", key)
		}
		items, err := v.Items()
		if err != nil {
			return fmt.Errorf("rank_pattern %q: %w", key, err)
		}
		left := int64(0)
		for _, item := range items {
			kept, err := item.Bool()
			if err != nil {
				return fmt.Errorf("rank_pattern %q: %w", key, err)
			}
			if kept {
				left++
			}
		}
		c.PrunedRanks[module] = left
	}
	return nil
}

func (c *Config) readTargets() error {
	for _, f := range []struct {
		key string
		dst *Matcher
	}{{"target_modules", &c.Targets}, {"exclude_modules", &c.Exclude}, {"feedforward_modules", &c.FeedForward}} {
		v, ok := c.raw.Get(f.key)
		if !ok {
			continue
		}
		m, err := newMatcher(v)
		if err != nil {
			return fmt.Errorf("%s: %w", f.key, err)
		}
		*f.dst = m
	}
	if !c.FeedForward.Known() {
		return fmt.Errorf("feedforward_modules is %q: it can't be evaluated here, and which side of a module is scaled depends on it", c.FeedForward.Expr)
	}
	var err error
	c.TargetParameters, _, err = c.raw.OptStrings("target_parameters")
	return err
}

func (c *Config) readLayers() error {
	if v, ok := c.raw.Get("layers_to_transform"); ok && !v.IsNull() {
		one, err := v.Int()
		if err == nil {
			c.LayersToUse = []int64{one}
		} else if c.LayersToUse, err = v.Ints(); err != nil {
			return fmt.Errorf("layers_to_transform: %w", err)
		}
	}
	if v, ok := c.raw.Get("layers_pattern"); ok && !v.IsNull() {
		one, err := v.Text()
		if err == nil {
			c.LayersPattern = []string{one}
		} else if c.LayersPattern, err = v.Strings(); err != nil {
			return fmt.Errorf("layers_pattern: %w", err)
		}
	}
	ranges, ok, err := c.raw.OptItems("layer_replication")
	if err != nil || !ok {
		return err
	}
	total := int64(0)
	for i, item := range ranges {
		r, err := item.Ints()
		if err != nil || len(r) != 2 || r[0] < 0 || r[1] <= r[0] || r[1] > maxLayers {
			return fmt.Errorf("layer_replication entry %d is not a range [from, to)", i)
		}
		if total += r[1] - r[0]; total > maxLayers {
			return fmt.Errorf("layer_replication makes more than %d layers", maxLayers)
		}
		c.LayerReplication = append(c.LayerReplication, [2]int64{r[0], r[1]})
	}
	return nil
}

// maxLayers bounds what layer_replication may ask for: the deepest published
// models stay below a tenth of it.
const maxLayers = 4096

func (c *Config) readContent() error {
	var err error
	if c.Bias, _, err = c.raw.OptString("bias"); err != nil {
		return err
	}
	switch {
	case c.Bias == "" || c.Bias == "none" || c.Bias == "all" || strings.HasSuffix(c.Bias, "_only"):
	default:
		return fmt.Errorf("bias is %q, not none, all or %s_only", c.Bias, strings.ToLower(c.Type))
	}
	if c.ModulesToSave, _, err = c.raw.OptStrings("modules_to_save"); err != nil {
		return err
	}
	if c.EnsureTied, _, err = c.raw.OptBool("ensure_weight_tying"); err != nil {
		return err
	}
	return c.readTokens()
}

// readTokens reads the rows that trainable tokens replace: a list is for the
// input embedding, an object names the modules.
func (c *Config) readTokens() error {
	key := "trainable_token_indices"
	if c.Type == "TRAINABLE_TOKENS" {
		key = "token_indices"
	}
	v, ok := c.raw.Get(key)
	if !ok || v.IsNull() {
		return nil
	}
	c.TokenIndices = make(map[string][]int64)
	if v.Kind() != strictjson.KindObject {
		rows, err := v.Ints()
		if err != nil {
			return fmt.Errorf("%s: %w", key, err)
		}
		c.TokenIndices[""] = rows
		return nil
	}
	modules, _ := v.Object()
	for module, list := range modules.All() {
		rows, err := list.Ints()
		if err != nil {
			return fmt.Errorf("%s of %q: %w", key, module, err)
		}
		c.TokenIndices[module] = rows
	}
	return nil
}

// ordinaryInits leave the base as it is: the adapter is an ordinary one.
var ordinaryInits = map[string]bool{"gaussian": true, "eva": true, "orthogonal": true, "mica": true}

func (c *Config) readInit() error {
	if c.Type != "LORA" {
		return nil
	}
	v, ok := c.raw.Get("init_lora_weights")
	if !ok || v.Kind() == strictjson.KindBool || v.IsNull() {
		return nil
	}
	name, err := v.Text()
	if err != nil {
		return fmt.Errorf("init_lora_weights: %w", err)
	}
	c.Init = strings.ToLower(name)
	switch {
	case ordinaryInits[c.Init]:
		c.Init = ""
	case c.Init == "olora", c.Init == "corda", c.Init == "lora_ga", c.Init == "loftq",
		c.Init == "pissa", strings.HasPrefix(c.Init, "pissa_niter_"):
	default:
		return fmt.Errorf("init_lora_weights is %q: unknown, so whether it changed the base is unknown too", name)
	}
	return nil
}

func (c *Config) readKind() error {
	if c.Type != "VERA" {
		return nil
	}
	c.SaveProjection = true
	save, ok, err := c.raw.OptBool("save_projection")
	if err != nil {
		return err
	}
	if ok {
		c.SaveProjection = save
	}
	c.ProjectionKey, _, err = c.raw.OptInt("projection_prng_key")
	return err
}

// findUnknown lists the keys that are switched on and not understood.
func (c *Config) findUnknown(k *Kind) {
	for key, v := range c.raw.All() {
		if !isOff(v) && !understood[key] && !slices.Contains(k.Keys, key) {
			c.Unknown = append(c.Unknown, key)
		}
	}
}

// understood are the keys every kind may have: read above, or without meaning
// for a merge.
var understood = set(`
	peft_type task_type base_model_name_or_path revision inference_mode auto_mapping peft_version
	r lora_alpha alpha use_rslora use_dora lora_bias rank_pattern alpha_pattern target_modules
	exclude_modules target_parameters layers_to_transform layers_pattern layer_replication bias
	modules_to_save trainable_token_indices ensure_weight_tying init_lora_weights init_weights
	fan_in_fan_out lora_dropout module_dropout rank_dropout rank_dropout_scale kasa_config
	megatron_core qalora_group_size loftq_config eva_config corda_config lora_ga_config
	velora_config runtime_config monteclora_config ephemeral_gpu_offload`)

func set(words string) map[string]bool {
	m := make(map[string]bool)
	for _, w := range strings.Fields(words) {
		m[w] = true
	}
	return m
}

// RankOf returns the rank of a module: the first pattern that matches, else r.
func (c *Config) RankOf(module string) int64 {
	if r, ok := c.RankPattern.lookup(module); ok {
		return r
	}
	return c.Rank
}

// AlphaOf returns alpha of a module: the first pattern that matches, else the
// default.
func (c *Config) AlphaOf(module string) float64 {
	if a, ok := c.AlphaPattern.lookup(module); ok {
		return a
	}
	return c.Alpha
}

// ScaleOf returns the factor of a module's product: alpha / r, or
// alpha / sqrt(r) with rsLoRA.
func (c *Config) ScaleOf(module string) float64 {
	r := float64(c.RankOf(module))
	if c.RSLoRA {
		r = math.Sqrt(r)
	}
	return c.AlphaOf(module) / r
}

// PrunedRank returns how many ranks AdaLoRA left a module, if it pruned.
func (c *Config) PrunedRank(module string) (rank int64, ok bool) {
	rank, ok = c.PrunedRanks[module]
	return rank, ok
}

// TokensOf returns the token indices that the config names for a module: those
// of the longest name that covers it, else the list without a name.
func (c *Config) TokensOf(module string) (rows []int64, ok bool) {
	best := ""
	for name := range c.TokenIndices {
		if len(name) > len(best) && MatchName(name, module) {
			best = name
		}
	}
	rows, ok = c.TokenIndices[best]
	return rows, ok
}
