// Command soak runs the trials that `make test` runs a few of in full, and prints one table:
// `make soak`, or `go run ./test/soak [-run REGEXP] [-scale 0.1] [-seed N] [-budget 20m]`.
//
// A scenario is a test that counts by package trials. It gets a share of the budget; one whose time
// is up ends between two trials, and the table shows how many there were. What is left of an
// installation in which something failed is kept in the folder that is named below the table.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"regexp"
	"syscall"
	"time"
)

// options of a run.
type options struct {
	only     *regexp.Regexp
	scale    float64
	seed     uint64
	budget   time.Duration
	out      string
	markdown string
}

func main() {
	var o options
	var only string
	flag.StringVar(&only, "run", "", "run only scenarios whose name matches")
	flag.Float64Var(&o.scale, "scale", 1, "of the numbers of trials; 1 is what docs/reliability.md shows")
	flag.Uint64Var(&o.seed, "seed", 0, "of everything random; 0 takes another each time")
	flag.DurationVar(&o.budget, "budget", 40*time.Minute, "how long all of it may take; a scenario has its share")
	flag.StringVar(&o.out, "out", "", "folder for logs, results and what failed installations leave (default: a new one in /tmp)")
	flag.StringVar(&o.markdown, "markdown", "", "write the table there, too, for docs/reliability.md")
	flag.Parse()
	o.only = regexp.MustCompile(only)
	if o.seed == 0 {
		o.seed = 1 + rand.Uint64N(1_000_000)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, o); err != nil {
		fmt.Fprintln(os.Stderr, "soak:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, o options) error {
	if err := o.folder(); err != nil {
		return err
	}
	list := chosen(o)
	if len(list) == 0 {
		return errors.New("no scenario has such a name")
	}
	built, err := build(ctx, o.out, list)
	if err != nil {
		return err
	}
	fmt.Printf("seed %d, scale %g, budget %s, logs in %s\n", o.seed, o.scale, o.budget, o.out)
	var all []row
	for _, s := range list {
		if ctx.Err() != nil {
			break
		}
		all = append(all, s.run(ctx, o, built)...)
	}
	return report(o, all, ctx.Err())
}

// folder makes the folder of this run; its name is short, and not one that a census counts.
func (o *options) folder() (err error) {
	if o.out == "" {
		o.out, err = os.MkdirTemp("", "soak-")
		return err
	}
	if o.out, err = filepath.Abs(o.out); err != nil {
		return err
	}
	return os.MkdirAll(o.out, 0o755)
}

// build compiles each package's tests once, and the roost that they drive.
func build(ctx context.Context, out string, list []scenario) (map[string]string, error) {
	root, err := os.Getwd()
	if err != nil {
		return nil, err
	}
	built := map[string]string{}
	for _, s := range list {
		if _, have := built[s.pkg]; have {
			continue
		}
		bin := filepath.Join(out, filepath.Base(s.pkg)+".test")
		if err := command(ctx, "go", "test", "-tags", "failpoints", "-c", "-o", bin, "./"+s.pkg); err != nil {
			return nil, err
		}
		built[s.pkg] = bin
	}
	if _, found := built[e2e]; !found || os.Getenv("ROOST_E2E_BIN") != "" {
		return built, nil
	}
	bin := filepath.Join(out, "roost")
	if err := command(ctx, "make", "--no-print-directory", "build-failpoints", "OUT="+bin); err != nil {
		return nil, err
	}
	return built, errors.Join(os.Setenv("ROOST_E2E_BIN", bin), os.Setenv("ROOST_E2E_DATA", filepath.Join(root, ".cache", "test")))
}

func command(ctx context.Context, name string, args ...string) error {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Stdout, cmd.Stderr = os.Stderr, os.Stderr
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("%s %v: %w", name, args, err)
	}
	return nil
}
