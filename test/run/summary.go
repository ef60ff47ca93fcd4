package main

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
)

type counts struct{ passed, failed, skipped int }

// count counts tests, those with subtests only when they failed by themselves. A package that
// failed with no test to blame (build, panic, TestMain) counts as one failure.
func (p *pkg) count() counts {
	var c counts
	for name, t := range p.tests {
		switch {
		case name == "" || (t.parent && (t.status != "fail" || p.childFailed(name))):
		case t.status == "pass":
			c.passed++
		case t.status == "skip":
			c.skipped++
		case t.status == "fail", p.status != "":
			c.failed++
		}
	}
	if p.status == "fail" && c.failed == 0 {
		c.failed = 1
	}
	return c
}

func (p *pkg) childFailed(parent string) bool {
	for name, t := range p.tests {
		if strings.HasPrefix(name, parent+"/") && t.status != "pass" && t.status != "skip" {
			return true
		}
	}
	return false
}

// verdict prints the summary; its error is nil only when all is well. ended is how go test did.
func (r *report) verdict(ended error) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	var total counts
	for _, p := range r.pkgs {
		if p.status == "" {
			p.status = "fail" // go test died before it could say so
			fmt.Fprintf(r.w, "FAIL %s: it did not end\n", short(p.name))
			r.explain(p, "")
		}
		c := p.count()
		total = counts{total.passed + c.passed, total.failed + c.failed, total.skipped + c.skipped}
	}
	r.listSkips()
	r.listSeconds()
	fmt.Fprintf(r.w, "\n%d passed, %d failed, %d skipped\n", total.passed, total.failed, total.skipped)
	switch {
	case total.failed > 0:
		return errors.New("tests failed")
	case ended != nil:
		return fmt.Errorf("go test: %w", ended)
	case total.passed+total.skipped == 0:
		return errors.New("no test ran")
	}
	return nil
}

func (r *report) listSkips() {
	head := "\nskipped:\n"
	for _, name := range slices.Sorted(maps.Keys(r.pkgs)) {
		p := r.pkgs[name]
		for _, test := range slices.Sorted(maps.Keys(p.tests)) {
			if t := p.tests[test]; test != "" && t.status == "skip" {
				fmt.Fprintf(r.w, "%s  %s %s: %s\n", head, short(name), test, t.reason())
				head = ""
			}
		}
	}
}

// reason is what the test said, without the place where it said it.
func (t *result) reason() string {
	var out []string
	for line := range strings.Lines(strings.Join(t.output, "")) {
		if chatter(line) {
			continue
		}
		line = strings.TrimSpace(line)
		if place, text, ok := strings.Cut(line, ": "); ok && strings.Contains(place, ".go:") {
			line = text
		}
		out = append(out, line)
	}
	if len(out) == 0 {
		return "NO REASON GIVEN"
	}
	return strings.Join(out, " ")
}

// listSeconds names packages with tests, the slowest first.
func (r *report) listSeconds() {
	var list []*pkg
	for _, p := range r.pkgs {
		if p.count() != (counts{}) {
			list = append(list, p)
		}
	}
	slices.SortFunc(list, func(a, b *pkg) int {
		return cmp.Or(cmp.Compare(b.seconds, a.seconds), cmp.Compare(a.name, b.name))
	})
	if len(list) > 0 {
		fmt.Fprint(r.w, "\nseconds per package:\n")
	}
	for _, p := range list {
		note := ""
		if p.cached {
			note = " (cached)"
		}
		fmt.Fprintf(r.w, "%8.1f  %s%s\n", p.seconds, short(p.name), note)
	}
}
