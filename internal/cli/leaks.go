package cli

import (
	"context"
	"fmt"
	"os"

	"github.com/spf13/cobra"

	v1 "github.com/roosthq/roost/api/gen/v1"
)

func (a *app) leaksCommand() *cobra.Command {
	var fix bool
	cmd := &cobra.Command{
		Use:   "leaks",
		Short: "List what exists on the server's host and belongs to nobody",
		Long: `List what exists on the server's host and belongs to no sandbox, snapshot or template of this
installation: processes, network, disks, files, cgroups. --fix removes it. Roost does the same each minute
by itself, so a line here twice is worth a report.

The exit code is 0 when there is nothing, or when --fix has removed it all; else 1.`,
		Example: `  roost doctor leaks
  roost doctor leaks --fix
  roost doctor leaks --json | jq '[.leaks[].bytes] | add'`,
		Args: takes(),
		RunE: a.run(func(ctx context.Context, c *client, _ []string) error { return a.leaks(ctx, c, fix) }),
	}
	cmd.Flags().BoolVar(&fix, "fix", false, "remove them")
	return cmd
}

func (a *app) leaks(ctx context.Context, c *client, fix bool) error {
	progress := startBusy(a.json, "looking through the host")
	found, err := c.leaks(ctx, fix)
	progress.stop()
	if err != nil {
		return err
	}
	if a.json {
		err = printJSON(os.Stdout, v1.LeakList{Leaks: append([]v1.Leak{}, found...)})
	} else {
		err = a.showLeaks(found, fix)
	}
	if err != nil || leftOver(found) == 0 {
		return err
	}
	return &exitError{code: exitFailed}
}

func (c *client) leaks(ctx context.Context, fix bool) ([]v1.Leak, error) {
	if fix {
		list, err := answer[v1.LeakList](c.api.RemoveLeaksWithResponse(ctx))
		return list.Leaks, err
	}
	list, err := answer[v1.LeakList](c.api.ListLeaksWithResponse(ctx))
	return list.Leaks, err
}

func (a *app) showLeaks(found []v1.Leak, fix bool) error {
	if len(found) == 0 {
		_, err := fmt.Fprintln(os.Stdout, "no leaks")
		return err
	}
	t := newTable(os.Stdout, "KIND", "NAME", "SIZE", "DETAIL")
	for _, l := range found {
		t.row(l.Kind, l.Name, orUnknown(l.Bytes, size), leakDetail(l, fix))
	}
	if err := t.flush(); err != nil {
		return err
	}
	if !fix {
		a.tell("`roost doctor leaks --fix` removes them")
	}
	return nil
}

func leakDetail(l v1.Leak, fix bool) string {
	switch {
	case l.Removed:
		return l.Detail + "; removed"
	case fix:
		return l.Detail + "; NOT removed: " + firstOf(text(l.Error), "the host does not say why")
	default:
		return l.Detail
	}
}

// leftOver counts those that are still there.
func leftOver(found []v1.Leak) int {
	n := 0
	for _, l := range found {
		if !l.Removed {
			n++
		}
	}
	return n
}
