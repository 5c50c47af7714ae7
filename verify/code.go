package verify

import (
	"context"
	"strings"

	"github.com/loratool/loratool/internal/strictjson"
)

// maxSideFile bounds the JSON files beside the weights but the tokenizer's.
const maxSideFile = 4 << 20

// checkCode names what runs, or writes prompts, when the model is used.
func checkCode(_ context.Context, s *subject) error {
	if s.model.Config != nil && hasKey(s.model.Config, "auto_map") {
		s.add("custom-code", "", "config.json has an auto_map to Python code")
	}
	if summary, ok := s.model.GGUFSummary(); ok {
		if t := summary.Tokenizer; t != nil && t.ChatTemplate != "" {
			s.add("chat-template", "", "tokenizer.chat_template has %d bytes", len(t.ChatTemplate))
		}
		return nil
	}
	if err := s.checkSettings("tokenizer_config.json", "processor_config.json", "preprocessor_config.json", "chat_template.json"); err != nil {
		return err
	}
	files, err := s.model.SideFiles()
	if err != nil {
		return err
	}
	for _, f := range files {
		switch {
		case strings.HasSuffix(f.Name, ".py"):
			s.add("custom-code", "", "%q is Python code", f.Name)
		case strings.HasSuffix(f.Name, ".jinja"):
			s.add("chat-template", "", "%q has %d bytes", f.Name, f.Size)
		}
	}
	return nil
}

// checkSettings looks for code and templates in JSON files, as far as there are any.
func (s *subject) checkSettings(names ...string) error {
	for _, name := range names {
		data, ok, err := s.sideFile(name, maxSideFile)
		if err != nil {
			return err
		}
		settings, perr := strictjson.ParsePythonObject(data)
		if !ok || perr != nil {
			continue // whoever needs the file will say so
		}
		if hasKey(settings, "auto_map") {
			s.add("custom-code", "", "%s has an auto_map to Python code", name)
		}
		if hasKey(settings, "chat_template") {
			s.add("chat-template", "", "%s has one", name)
		}
	}
	return nil
}

func hasKey(o *strictjson.Object, key string) bool {
	v, ok := o.Get(key)
	return ok && !v.IsNull()
}
