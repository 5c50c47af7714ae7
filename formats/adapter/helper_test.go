package adapter_test

import (
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/loratool/loratool/formats/adapter"
	"github.com/loratool/loratool/formats/checkpoint"
	"github.com/loratool/loratool/formats/hfrepo"
	"github.com/loratool/loratool/formats/safetensors"
	"github.com/loratool/loratool/formats/tensor"
	"github.com/loratool/loratool/internal/strictjson"
)

// specs reads "name:2x3" as a tensor of that shape, "name:" as a scalar; F32.
func specs(t *testing.T, list ...string) []tensor.Spec {
	t.Helper()
	var all []tensor.Spec
	for _, entry := range list {
		name, dims, ok := strings.Cut(entry, ":")
		if !ok {
			t.Fatalf("%q has no shape", entry)
		}
		var shape tensor.Shape
		for _, d := range strings.Split(dims, "x") {
			if d == "" {
				continue
			}
			n, err := strconv.ParseInt(d, 10, 64)
			if err != nil {
				t.Fatal(err)
			}
			shape = append(shape, n)
		}
		all = append(all, tensor.Spec{Name: name, DType: tensor.F32, Shape: shape})
	}
	return all
}

// source writes an adapter folder with tensors of zeros and opens it.
func source(t *testing.T, config string, tensors ...string) *checkpoint.Model {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "lora")
	l, err := safetensors.NewLayout(specs(t, tensors...), nil)
	if err != nil {
		t.Fatal(err)
	}
	data := make([]byte, l.Size())
	copy(data, l.Header())
	if err := errors.Join(os.Mkdir(dir, 0o777),
		os.WriteFile(filepath.Join(dir, "adapter_config.json"), []byte(config), 0o666),
		os.WriteFile(filepath.Join(dir, "adapter_model.safetensors"), data, 0o666)); err != nil {
		t.Fatal(err)
	}
	m, err := checkpoint.OpenAdapter(dir, hfrepo.Cache{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { m.Close() })
	return m
}

func mustOpen(t *testing.T, config string, tensors ...string) *adapter.Adapter {
	t.Helper()
	a, err := adapter.Open(source(t, config, tensors...))
	if err != nil {
		t.Fatal(err)
	}
	return a
}

func parse(t *testing.T, text string) (*adapter.Config, error) {
	t.Helper()
	o, err := strictjson.ParseObject([]byte(text))
	if err != nil {
		t.Fatalf("%s: %v", text, err)
	}
	return adapter.ParseConfig(o)
}

func mustParse(t *testing.T, text string) *adapter.Config {
	t.Helper()
	c, err := parse(t, text)
	if err != nil {
		t.Fatalf("%s: %v", text, err)
	}
	return c
}

// base is a checkpoint without data.
type base []tensor.Spec

func (b base) Specs() []tensor.Spec { return b }

func (b base) Lookup(name string) (tensor.Spec, bool) {
	for _, s := range b {
		if s.Name == name {
			return s, true
		}
	}
	return tensor.Spec{}, false
}

// checkError asserts a one-line error with every want in it.
func checkError(t *testing.T, err error, want ...string) {
	t.Helper()
	if err == nil {
		t.Fatalf("no error, want %q", want)
	}
	for _, w := range want {
		if !strings.Contains(err.Error(), w) {
			t.Errorf("error %q does not contain %q", err, w)
		}
	}
	if strings.ContainsAny(err.Error(), "\n\r") {
		t.Errorf("error of several lines: %q", err)
	}
}

// pair is a LoRA pair of a module for a weight of out x in.
func pair(module string, out, rank, in int) []string {
	n := strconv.Itoa
	return []string{
		"base_model.model." + module + ".lora_A.weight:" + n(rank) + "x" + n(in),
		"base_model.model." + module + ".lora_B.weight:" + n(out) + "x" + n(rank),
	}
}

func concat(lists ...[]string) []string {
	var all []string
	for _, l := range lists {
		all = append(all, l...)
	}
	return all
}
