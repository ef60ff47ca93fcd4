package cli

import (
	"context"
	"fmt"
	"os"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	v1 "github.com/roosthq/roost/api/gen/v1"
	"github.com/roosthq/roost/internal/fault"
)

func (a *app) doctorCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "doctor",
		Short: "Say what the host can do, what is missing and how to fix it",
		Long: `Say what the server's host can do, what is missing and how to fix it. When no server answers,
this machine is checked instead. The exit code is 1 when a check fails.`,
		Example: `  roost doctor
  roost doctor leaks
  roost doctor --json | jq '.checks[] | select(.status != "ok")'`,
		Args: takes(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			return interruptible(cmd.Context(), a.doctor)
		},
	}
	cmd.AddCommand(a.leaksCommand())
	return cmd
}

// diagnosis is the JSON document of doctor. Host is null when no server answered.
type diagnosis struct {
	Server *string    `json:"server"`
	Host   *v1.Host   `json:"host"`
	Checks []v1.Check `json:"checks"`
}

func (a *app) doctor(ctx context.Context) error {
	found, err := a.diagnose(ctx)
	if err != nil {
		return err
	}
	if a.json {
		err = printJSON(os.Stdout, found)
	} else {
		err = found.print()
	}
	if err != nil {
		return err
	}
	for _, check := range found.Checks {
		if check.Status == v1.Fail {
			return &exitError{code: exitFailed}
		}
	}
	return nil
}

// diagnose asks the server; when none answers it asks the local hook. A server that answers
// with an error is neither: that error is returned.
func (a *app) diagnose(ctx context.Context) (diagnosis, error) {
	c, err := a.connect()
	if err != nil {
		return a.diagnoseLocally(ctx, nil, err)
	}
	host, err := answer[v1.Host](c.api.GetHostWithResponse(ctx))
	switch {
	case fault.Is(err, fault.Unavailable):
		return a.diagnoseLocally(ctx, &c.URL, err)
	case err != nil:
		return diagnosis{}, err
	}
	up := v1.Check{Name: "server", Status: v1.Ok, Detail: c.URL + " answers, version " + host.Version}
	checks := append([]v1.Check{up}, host.Checks...)
	host.Checks = []v1.Check{}
	return diagnosis{Server: &c.URL, Host: &host, Checks: checks}, nil
}

func (a *app) diagnoseLocally(ctx context.Context, server *string, cause error) (diagnosis, error) {
	if a.opts.LocalDoctor == nil {
		return diagnosis{}, cause
	}
	down := v1.Check{Name: "server", Status: v1.Warn, Detail: "no server answers: " + cause.Error() + "; this machine was checked instead"}
	if hint := fault.HintOf(cause); hint != "" {
		down.Hint = &hint
	}
	return diagnosis{Server: server, Checks: append([]v1.Check{down}, a.opts.LocalDoctor(ctx)...)}, nil
}

// runtimeTable lists what a sandbox may ask for, and why not the rest.
func runtimeTable(runtimes []v1.Runtime) error {
	t := newTable(os.Stdout, "RUNTIME", "ISOLATION", "AVAILABLE", "WHY")
	for _, r := range runtimes {
		available := "no"
		if r.Available {
			available = "yes"
		}
		t.row(r.Name, r.Isolation, available, r.Reason)
	}
	err := t.flush()
	_, _ = fmt.Fprintln(os.Stdout)
	return err
}

// groupOf splits "production: swap"; most checks are of no group.
func groupOf(c v1.Check) (group, name string) {
	group, name, grouped := strings.Cut(c.Name, ": ")
	if !grouped {
		return "", c.Name
	}
	return group, name
}

func (d diagnosis) print() error {
	if d.Host != nil {
		_, _ = fmt.Fprintf(os.Stdout, "%s: %s, isolation %s\n\n", printable(d.Host.Hostname), printable(d.Host.Runtime), printable(d.Host.Isolation))
		if err := runtimeTable(d.Host.Runtimes); err != nil {
			return err
		}
	}
	t := newTable(os.Stdout, "CHECK", "STATUS", "DETAIL")
	shown := ""
	// Those of no group come first, wherever they were added.
	checks := slices.Clone(d.Checks)
	slices.SortStableFunc(checks, func(a, b v1.Check) int {
		x, _ := groupOf(a)
		y, _ := groupOf(b)
		return strings.Compare(x, y)
	})
	for _, check := range checks {
		group, name := groupOf(check)
		if group != shown {
			t.row("", "", "")
			t.row(strings.ToUpper(group), "", "")
			shown = group
		}
		t.row(name, string(check.Status), check.Detail)
		if check.Hint != nil && check.Status != v1.Ok {
			t.row("", "", "hint: "+*check.Hint)
		}
	}
	return t.flush()
}
