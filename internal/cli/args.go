package cli

import (
	"fmt"
	"regexp"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
)

// takes checks the number of arguments against their names; the last ends in "…" when it may
// repeat, and one in brackets may be left out.
func takes(names ...string) cobra.PositionalArgs {
	least, most := len(names), len(names)
	for _, name := range names {
		switch {
		case strings.HasPrefix(name, "["):
			least--
		case strings.HasSuffix(name, "…"):
			most = 1 << 20
		}
	}
	return func(_ *cobra.Command, args []string) error {
		if len(args) < least {
			return fmt.Errorf("%s is missing", strings.Join(names[len(args):], " "))
		}
		if len(args) > most {
			return fmt.Errorf("unexpected argument %q", args[most])
		}
		return nil
	}
}

// checkID refuses what cannot be a sandbox id and would otherwise turn into another URL.
func checkID(id string) error {
	if id == "" || strings.ContainsAny(id, "/?#%. ") {
		return fmt.Errorf("%q is no sandbox id; roost ls -a shows them", id)
	}
	return nil
}

// nameShape is the API's pattern of a template's or snapshot's name; ids have it too.
var nameShape = regexp.MustCompile(`^[a-z0-9][a-z0-9._-]{0,62}$`)

// checkName refuses what cannot be a template's or snapshot's name.
func checkName(name string) error {
	if !nameShape.MatchString(name) {
		return fmt.Errorf("%q is no name of a template or snapshot: a-z, 0-9, \".\", \"_\" and \"-\", at most 63, the first a letter or digit", name)
	}
	return nil
}

// checkAll is the first error of check over args.
func checkAll(args []string, check func(string) error) error {
	for _, arg := range args {
		if err := check(arg); err != nil {
			return err
		}
	}
	return nil
}

// parseSeconds reads "300", "5m" or "never" as whole seconds; 0 means never.
func parseSeconds(text string) (int, error) {
	if text == "never" {
		return 0, nil
	}
	if n, err := strconv.Atoi(text); err == nil && n >= 0 {
		return n, nil
	}
	d, err := time.ParseDuration(text)
	if err != nil || d < 0 || d%time.Second != 0 {
		return 0, fmt.Errorf("%q is no time: give whole seconds (300), a duration (5m) or never", text)
	}
	return int(d / time.Second), nil
}

// pairs is a repeatable NAME=VALUE flag.
type pairs map[string]string

func (p *pairs) String() string { return "" }
func (p *pairs) Type() string   { return "NAME=VALUE" }

func (p *pairs) Set(text string) error {
	name, value, found := strings.Cut(text, "=")
	if !found || name == "" {
		return fmt.Errorf("%q is not NAME=VALUE", text)
	}
	if *p == nil {
		*p = pairs{}
	}
	(*p)[name] = value
	return nil
}

// asMap is the API's form: nil when nothing was given.
func (p *pairs) asMap() *map[string]string {
	if len(*p) == 0 {
		return nil
	}
	m := map[string]string(*p)
	return &m
}

// given is a pointer to v when the flag was set, else nil: the server's default holds.
func given[T any](cmd *cobra.Command, flag string, v T) *T {
	if !cmd.Flags().Changed(flag) {
		return nil
	}
	return &v
}

// nonEmpty is a pointer to s, or nil when it is empty.
func nonEmpty(s string) *string {
	if s == "" {
		return nil
	}
	return &s
}
