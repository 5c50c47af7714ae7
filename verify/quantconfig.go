package verify

import (
	"context"
	"strings"

	"github.com/loratool/loratool/formats/checkpoint"
	"github.com/loratool/loratool/formats/tensor"
	"github.com/loratool/loratool/internal/strictjson"
)

// checkQuantization compares quantization_config with what is stored. A loader
// believes the config: codes without it are taken for weights, and weights with it
// for codes.
func checkQuantization(_ context.Context, s *subject) error {
	if !s.isModel() {
		return nil
	}
	stored := s.storedQuantization()
	q := s.config.Quantization()
	if q == nil {
		if stored != "" {
			s.add("quantization-missing", "", "the weights are stored as %s, and config.json has no quantization_config", stored)
		}
		return nil
	}
	method, _, _ := q.OptString("quant_method")
	switch want := methods[method]; {
	case want == "": // a method that is not known here
	case stored == "":
		s.add("quantization-stale", "", "quantization_config says %q, and no weight is stored so", method)
	case want != stored:
		s.add("quantization-differs", "", "quantization_config says %q, the weights are stored as %s", method, stored)
	case want == storedBitsAndBytes:
		s.checkBitsAndBytes(q)
	}
	return nil
}

// What the tensors of a model look like, by how they are stored.
const (
	storedBitsAndBytes = "codes of bitsandbytes"
	storedFP8          = "FP8"
	storedPacked       = "packed integers"
)

// methods are the values of quant_method whose storage is known.
var methods = map[string]string{
	"bitsandbytes": storedBitsAndBytes, "fp8": storedFP8, "fbgemm_fp8": storedFP8, "gptq": storedPacked, "awq": storedPacked,
}

// storedQuantization says how the weights are stored, "" if they are numbers.
func (s *subject) storedQuantization() string {
	for _, spec := range s.model.Specs() {
		d, derived := s.model.Derived(spec.Name)
		switch {
		case derived && !d.FP8:
			return storedBitsAndBytes
		case derived || spec.DType == tensor.F8E4M3 || spec.DType == tensor.F8E5M2:
			return storedFP8
		case strings.HasSuffix(spec.Name, ".qweight"):
			return storedPacked
		}
	}
	return ""
}

// checkBitsAndBytes compares the settings of bitsandbytes with the first weight of
// each kind that is stored.
func (s *subject) checkBitsAndBytes(q *strictjson.Object) {
	for _, spec := range s.model.Specs() {
		d, ok := s.model.Derived(spec.Name)
		if !ok {
			continue
		}
		if reason := disagrees(q, d); reason != "" {
			s.add("quantization-differs", spec.Name, "it is stored as %s, and quantization_config says %s", describeCodes(d), reason)
			return // the others are as the first
		}
	}
}

func describeCodes(d checkpoint.Derived) string {
	if d.Nested {
		return d.Kind + " with quantized scales"
	}
	return d.Kind
}

// disagrees returns the setting that a weight contradicts, "" if there is none.
func disagrees(q *strictjson.Object, d checkpoint.Derived) string {
	four, _, _ := q.OptBool("load_in_4bit")
	eight, _, _ := q.OptBool("load_in_8bit")
	if d.Kind == "int8" {
		if !eight {
			return "load_in_8bit: false"
		}
		return ""
	}
	kind, hasKind, _ := q.OptString("bnb_4bit_quant_type")
	double, hasDouble, _ := q.OptBool("bnb_4bit_use_double_quant")
	switch {
	case !four:
		return "load_in_4bit: false"
	case hasKind && kind != d.Kind:
		return "bnb_4bit_quant_type: " + kind
	case hasDouble && double != d.Nested:
		if double {
			return "bnb_4bit_use_double_quant: true"
		}
		return "bnb_4bit_use_double_quant: false"
	}
	return ""
}
