package cli

import (
	"context"
	"fmt"
	"os"
	"slices"
	"strconv"

	"github.com/spf13/cobra"

	v1 "github.com/roosthq/roost/api/gen/v1"
)

type lsFlags struct {
	all   bool
	ids   bool
	state string
}

func (a *app) lsCommand() *cobra.Command {
	var f lsFlags
	cmd := &cobra.Command{
		Use:   "ls",
		Short: "List sandboxes, newest first",
		Long: `List sandboxes, newest first. Lost ones, which ran when the host went down, are among them, failed
ones with -a: ` + "`roost resume --cold`" + ` starts either again.`,
		Example: `  roost ls
  roost ls -a --json
  roost pause $(roost ls -q --state running | head -1)`,
		Args: takes(),
	}
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if f.state != "" && !v1.SandboxState(f.state).Valid() {
			return usage(cmd, "%q is no state: creating, running, pausing, paused, resuming, failed, lost, deleting, deleted", f.state)
		}
		return a.run(func(ctx context.Context, c *client, _ []string) error { return a.ls(ctx, c, f) })(cmd, args)
	}
	cmd.Flags().BoolVarP(&f.all, "all", "a", false, "failed ones, and those deleted within a day, too")
	cmd.Flags().BoolVarP(&f.ids, "quiet", "q", false, "only ids")
	cmd.Flags().StringVar(&f.state, "state", "", "only those in this state")
	return cmd
}

func (a *app) ls(ctx context.Context, c *client, f lsFlags) error {
	sandboxes, err := c.sandboxes(ctx, v1.SandboxState(f.state))
	if err != nil {
		return err
	}
	switch {
	case f.state != "":
	case f.all:
		// The plain list leaves them out; the API keeps them for a day.
		deleted, err := c.sandboxes(ctx, v1.Deleted)
		if err != nil {
			return err
		}
		sandboxes = append(sandboxes, deleted...)
	default:
		sandboxes = slices.DeleteFunc(sandboxes, hidden)
	}
	switch {
	case a.json:
		return printJSON(os.Stdout, v1.SandboxList{Sandboxes: sandboxes})
	case f.ids:
		for _, s := range sandboxes {
			_, _ = fmt.Fprintln(os.Stdout, s.Id)
		}
		return nil
	default:
		return listTable(sandboxes)
	}
}

// hidden tells whether only -a shows the sandbox. Lost ones show: after a reboot nobody should
// have to look for them.
func hidden(s v1.Sandbox) bool {
	return s.State == v1.Failed || s.State == v1.Deleted
}

// sandboxes reads every page. The answer is never nil, so that JSON shows [].
func (c *client) sandboxes(ctx context.Context, state v1.SandboxState) ([]v1.Sandbox, error) {
	limit := 1000
	params := &v1.ListSandboxesParams{Limit: &limit}
	if state != "" {
		params.State = &state
	}
	all := []v1.Sandbox{}
	for {
		page, err := answer[v1.SandboxList](c.api.ListSandboxesWithResponse(ctx, params))
		if err != nil {
			return nil, err
		}
		all = append(all, page.Sandboxes...)
		if text(page.NextCursor) == "" || len(page.Sandboxes) == 0 {
			return all, nil
		}
		params.Cursor = page.NextCursor
	}
}

func listTable(sandboxes []v1.Sandbox) error {
	t := newTable(os.Stdout, "ID", "STATE", "TEMPLATE", "RUNTIME", "ISOLATION", "CPU", "MEM", "DISK", "AGE", "IDLE-TIMEOUT", "REASON")
	for _, s := range sandboxes {
		t.row(s.Id, string(s.State), s.Template, s.Runtime, s.Isolation, strconv.Itoa(s.Vcpus),
			used(s.MemoryUsedBytes, s.MemoryMb), used(s.DiskUsedBytes, s.DiskSizeMb),
			age(s.CreatedAt), idle(s.IdleTimeoutS), text(s.Reason))
	}
	return t.flush()
}

// used is "12 MiB/512 MiB", or the limit alone where use is not known.
func used(bytes *int64, limitMB int) string {
	if bytes == nil {
		return mib(limitMB)
	}
	return size(*bytes) + "/" + mib(limitMB)
}
