package firecrackertest

import (
	"bytes"
	_ "embed"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"sync"
)

//go:embed api.json
var description []byte

// Table describes the API.
type Table struct {
	Endpoints []Endpoint      `json:"endpoints"`
	Types     map[string]Type `json:"types"`
}

// Endpoint is one request. {id} in a path is the value of the field ID of its body.
type Endpoint struct {
	Method string `json:"method"`
	Path   string `json:"path"`
	ID     string `json:"id"`
	Body   string `json:"body"`
	Answer string `json:"answer"`
	// When is before or after the VM's start, or any.
	When string `json:"when"`
}

// Type is a JSON object, by its fields' names.
type Type map[string]Field

// Field is one of a Type: string, integer, boolean, a Type's name, or [] of that.
type Field struct {
	Type     string   `json:"type"`
	Required bool     `json:"required"`
	Values   []string `json:"values"`
	Min      *int64   `json:"min"`
	Max      *int64   `json:"max"`
}

// API is the table.
var API = sync.OnceValue(func() Table {
	var t Table
	if err := json.Unmarshal(description, &t); err != nil {
		panic(err) // it is part of the program
	}
	return t
})

// Find is the endpoint of a request, and the id in its path.
func (t Table) Find(method, path string) (e Endpoint, id string, found bool) {
	for _, e := range t.Endpoints {
		if e.Method != method {
			continue
		}
		head, isItem := strings.CutSuffix(e.Path, "{id}")
		if rest, below := strings.CutPrefix(path, head); isItem && below && rest != "" && !strings.Contains(rest, "/") {
			return e, rest, true
		}
		if e.Path == path {
			return e, "", true
		}
	}
	return Endpoint{}, "", false
}

// Check holds a body to a type.
func (t Table) Check(name string, body []byte) error {
	d := json.NewDecoder(bytes.NewReader(body))
	d.UseNumber()
	var v any
	if err := d.Decode(&v); err != nil {
		return err
	}
	return t.check(name, v)
}

func (t Table) check(name string, v any) error {
	object, ok := v.(map[string]any)
	if !ok {
		return fmt.Errorf("invalid type: expected struct %s", name)
	}
	for field, value := range object {
		f, known := t.Types[name][field]
		if !known {
			return fmt.Errorf("unknown field `%s`", field)
		}
		if err := t.checkField(f, value); err != nil {
			return fmt.Errorf("%s: %w", field, err)
		}
	}
	for field, f := range t.Types[name] {
		if _, given := object[field]; f.Required && !given {
			return fmt.Errorf("missing field `%s`", field)
		}
	}
	return nil
}

func (t Table) checkField(f Field, v any) error {
	if item, isList := strings.CutPrefix(f.Type, "[]"); isList {
		list, ok := v.([]any)
		if !ok {
			return fmt.Errorf("invalid type: expected a sequence")
		}
		for _, one := range list {
			if err := t.checkField(Field{Type: item}, one); err != nil {
				return err
			}
		}
		return nil
	}
	switch f.Type {
	case "string":
		return checkString(f, v)
	case "integer":
		return checkInteger(f, v)
	case "boolean":
		if _, ok := v.(bool); !ok {
			return fmt.Errorf("invalid type: expected a boolean")
		}
		return nil
	default:
		return t.check(f.Type, v)
	}
}

func checkString(f Field, v any) error {
	s, ok := v.(string)
	if !ok {
		return fmt.Errorf("invalid type: expected a string")
	}
	if len(f.Values) > 0 && !slices.Contains(f.Values, s) {
		return fmt.Errorf("unknown variant `%s`", s)
	}
	return nil
}

func checkInteger(f Field, v any) error {
	number, ok := v.(json.Number)
	if !ok {
		return fmt.Errorf("invalid type: expected an integer")
	}
	n, err := number.Int64()
	if err != nil {
		return err
	}
	if f.Min != nil && n < *f.Min || f.Max != nil && n > *f.Max {
		return fmt.Errorf("invalid value: %d", n)
	}
	return nil
}
