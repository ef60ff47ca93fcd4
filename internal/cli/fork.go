package cli

import (
	"context"
	"fmt"
	"os"
	"time"

	"github.com/spf13/cobra"

	v1 "github.com/roosthq/roost/api/gen/v1"
)

// maxForks is the most that one request makes.
const maxForks = 64

type forkFlags struct {
	count         int
	timeout       string
	env, metadata pairs
}

func (a *app) forkCommand() *cobra.Command {
	var f forkFlags
	cmd := &cobra.Command{
		Use:   "fork ID",
		Short: "Make sandboxes with the memory and disk of another, and print their ids",
		Long: `Make sandboxes with the memory, processes and disk of one that runs or is paused, and print their ids,
one a line. They are all made or none. Each has an identity of its own: id, host name, machine id, tokens,
random numbers and clock. The source stands still for a moment, once for all of them, and goes on.

Sizes and runtime are the source's. Memory and disk are shared until one side writes to them.`,
		Example: `  roost fork $id
  ids=$(roost fork $id -n 8)
  roost fork $id -n 2 --timeout 1h --env ROLE=worker --metadata run=7`,
		Args: takes("ID"),
	}
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		body, err := f.request(cmd)
		if err != nil {
			return usage(cmd, "%s", err.Error())
		}
		return a.onSandbox(func(ctx context.Context, c *client, id string) error { return a.fork(ctx, c, id, body) })(cmd, args)
	}
	flags := cmd.Flags()
	flags.IntVarP(&f.count, "count", "n", 1, fmt.Sprintf("how many, at most %d", maxForks))
	flags.StringVar(&f.timeout, "timeout", "", "pause after so long without activity: seconds, 5m, or 0 for never (default: the source's)")
	flags.Var(&f.env, "env", "environment of every command in them, besides the source's (repeatable)")
	flags.Var(&f.metadata, "metadata", "labels of your own (repeatable; default: the source's)")
	return cmd
}

func (f *forkFlags) request(cmd *cobra.Command) (v1.Fork, error) {
	if f.count < 1 || f.count > maxForks {
		return v1.Fork{}, fmt.Errorf("-n %d: give 1 to %d", f.count, maxForks)
	}
	body := v1.Fork{Count: &f.count, Env: f.env.asMap(), Metadata: f.metadata.asMap()}
	if !cmd.Flags().Changed("timeout") {
		return body, nil
	}
	idleSeconds, err := parseSeconds(f.timeout)
	body.IdleTimeoutS = &idleSeconds
	return body, err
}

func (a *app) fork(ctx context.Context, c *client, id string, body v1.Fork) error {
	start := time.Now()
	progress := startBusy(a.json, "forking "+id)
	made, err := answer[v1.ForkResult](c.api.ForkSandboxWithResponse(ctx, id, body))
	progress.stop()
	if err != nil {
		return err
	}
	if a.json {
		return printJSON(os.Stdout, made)
	}
	total := float64(time.Since(start).Microseconds()) / 1000
	a.remark("%s in %s; %s", count(len(made.Sandboxes), "fork", "forks"), duration(total), stood(id, &made.FrozenMs))
	for _, s := range made.Sandboxes {
		if err := printID(s); err != nil {
			return err
		}
	}
	return nil
}
