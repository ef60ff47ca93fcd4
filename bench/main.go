// Command bench measures Roost's figures on this machine: `make bench`, or
// `go run ./bench [-pairs N] [-only REGEXP]`. It starts an installation of its own a runtime, with
// real guests, measures each figure as interleaved pairs (package harness) and writes bench/results.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"regexp"
	"syscall"

	"github.com/roosthq/roost/bench/harness"
)

// options of a run.
type options struct {
	pairs int
	only  *regexp.Regexp
	bin   string
	data  string
	out   string
}

func main() {
	var o options
	var only string
	flag.IntVar(&o.pairs, "pairs", harness.DefaultPairs, "pairs of each experiment")
	flag.StringVar(&only, "only", "", "measure only figures whose name matches")
	flag.StringVar(&o.bin, "roost", "bin/roost", "the binary to measure")
	flag.StringVar(&o.data, "templates", ".cache/test", "data directory whose templates are used; built when missing")
	flag.StringVar(&o.out, "out", "bench/results", "folder for results")
	flag.Parse()
	o.only = regexp.MustCompile(only)
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := bench(ctx, o); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func bench(ctx context.Context, o options) error {
	all := &servers{o: o, by: map[string]*server{}}
	defer all.remove()
	var results []harness.Result
	for _, fig := range figures(all) {
		if !o.only.MatchString(fig.Name) {
			continue
		}
		fmt.Fprintf(os.Stderr, "%s\n", fig.Name)
		r, err := fig.measure(ctx, o.pairs)
		if errors.Is(err, errMissing) {
			fmt.Fprintf(os.Stderr, "  LEFT OUT: %v\n", err)
			continue
		}
		if err != nil {
			return err
		}
		results = append(results, r...)
		for _, one := range r {
			fmt.Fprintf(os.Stderr, "  %s\n", one.Verdict())
		}
	}
	fmt.Println(harness.Markdown(results))
	if o.only.String() != "" {
		return nil // a part of the figures does not replace all of them
	}
	if err := os.MkdirAll(o.out, 0o755); err != nil {
		return err
	}
	return harness.Save(filepath.Join(o.out, "figures"), results)
}
