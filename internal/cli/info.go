package cli

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	v1 "github.com/roosthq/roost/api/gen/v1"
)

func (a *app) infoCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "info ID",
		Short: "Show everything about a sandbox",
		Long: `Show everything about a sandbox: its state and why, what it comes from, real use on the host, and
how long each step of its last change took.`,
		Example: `  roost info $id
  roost info $id --json | jq -r .state`,
		Args: takes("ID"),
		RunE: a.onSandbox(func(ctx context.Context, c *client, id string) error {
			sandbox, err := answer[v1.Sandbox](c.api.GetSandboxWithResponse(ctx, id))
			if err != nil {
				return err
			}
			return a.showSandbox(sandbox, infoTable)
		}),
	}
}

// onSandbox makes a RunE for a command whose first argument is a sandbox; errors name it.
func (a *app) onSandbox(f func(ctx context.Context, c *client, id string) error) func(*cobra.Command, []string) error {
	return func(cmd *cobra.Command, args []string) error {
		if err := checkID(args[0]); err != nil {
			return usage(cmd, "%s", err.Error())
		}
		run := a.run(func(ctx context.Context, c *client, args []string) error { return f(ctx, c, args[0]) })
		return nameObject(args[0], run(cmd, args))
	}
}

// nameObject puts an object into err's head, keeping the exit code of an exitError.
func nameObject(object string, err error) error {
	var exit *exitError
	if errors.As(err, &exit) {
		return &exitError{code: exit.code, err: on(object, exit.err)}
	}
	return on(object, err)
}

// showSandbox prints the JSON document, or calls plain.
func (a *app) showSandbox(s v1.Sandbox, plain func(v1.Sandbox) error) error {
	if a.json {
		return printJSON(os.Stdout, s)
	}
	return plain(s)
}

func printID(s v1.Sandbox) error {
	_, err := fmt.Fprintln(os.Stdout, s.Id)
	return err
}

func infoTable(s v1.Sandbox) error {
	t := newTable(os.Stdout, "ID", s.Id)
	t.row("State", string(s.State))
	if s.Reason != nil {
		t.row("Reason", *s.Reason)
	}
	if restartable(s) {
		t.row("Next", "roost resume --cold "+s.Id+" starts it from what is left of its disk")
	}
	t.row("Template", s.Template)
	if s.ForkedFrom != nil {
		t.row("Forked from", *s.ForkedFrom)
	}
	t.row("Isolation", s.Isolation)
	t.row("Runtime", s.Runtime)
	t.row("vCPUs", strconv.Itoa(s.Vcpus))
	t.row("Memory", used(s.MemoryUsedBytes, s.MemoryMb))
	t.row("Disk", used(s.DiskUsedBytes, s.DiskSizeMb))
	t.row("Idle timeout", idle(s.IdleTimeoutS))
	t.row("Generation", strconv.FormatInt(s.Generation, 10))
	t.row("Created", moment(&s.CreatedAt))
	t.row("Active", moment(s.ActiveAt))
	t.row("Metadata", joinPairs(s.Metadata))
	t.row("Phases", joinPhases(s.Phases))
	return t.flush()
}

// restartable tells whether only a cold resume starts the sandbox again.
func restartable(s v1.Sandbox) bool { return s.State == v1.Failed || s.State == v1.Lost }

func moment(t *time.Time) string {
	if t == nil {
		return "-"
	}
	return fmt.Sprintf("%s (%s ago)", t.Local().Format(time.RFC3339), age(*t))
}

func joinPairs(m *map[string]string) string {
	if m == nil || len(*m) == 0 {
		return "-"
	}
	var out []string
	for name, value := range *m {
		out = append(out, name+"="+value)
	}
	slices.Sort(out)
	return strings.Join(out, ", ")
}

func joinPhases(phases *[]v1.Phase) string {
	if phases == nil || len(*phases) == 0 {
		return "-"
	}
	var out []string
	for _, p := range *phases {
		out = append(out, fmt.Sprintf("%s %.1f ms", p.Name, p.Ms))
	}
	return strings.Join(out, ", ")
}
