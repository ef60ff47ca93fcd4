package cli

import (
	"context"
	"fmt"
	"os"

	"github.com/spf13/cobra"

	v1 "github.com/roosthq/roost/api/gen/v1"
)

func (a *app) leaksCommand() *cobra.Command {
	var fix leakFix
	cmd := &cobra.Command{
		Use:   "leaks",
		Short: "List what exists on the server's host and belongs to nobody",
		Long: `List what exists on the server's host and belongs to no sandbox, snapshot or template of this
installation: processes, network, disks, files, cgroups. --fix removes it. Roost does the same each minute
by itself, so a line here twice is worth a report.

Sandboxes, snapshots and templates that the host has and the database does not know hold data: --fix leaves
them, unless --with-data says that nobody wants it. Look whether the database is an old one first.

The exit code is 0 when there is nothing, or when --fix has removed it all; else 1.`,
		Example: `  roost doctor leaks
  roost doctor leaks --fix
  roost doctor leaks --json | jq '[.leaks[].bytes] | add'`,
		Args: takes(),
	}
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if fix.withData && !fix.fix {
			return usage(cmd, "--with-data goes with --fix")
		}
		return a.run(func(ctx context.Context, c *client, _ []string) error { return a.leaks(ctx, c, fix) })(cmd, args)
	}
	cmd.Flags().BoolVar(&fix.fix, "fix", false, "remove them")
	cmd.Flags().BoolVar(&fix.withData, "with-data", false, "with --fix: also those that hold data")
	return cmd
}

// leakFix says what to remove.
type leakFix struct{ fix, withData bool }

func (a *app) leaks(ctx context.Context, c *client, fix leakFix) error {
	progress := startBusy(a.json, "looking through the host")
	found, err := c.leaks(ctx, fix)
	progress.stop()
	if err != nil {
		return err
	}
	if a.json {
		err = printJSON(os.Stdout, v1.LeakList{Leaks: append([]v1.Leak{}, found...)})
	} else {
		err = a.showLeaks(found, fix.fix)
	}
	if err != nil || leftOver(found) == 0 {
		return err
	}
	return &exitError{code: exitFailed}
}

func (c *client) leaks(ctx context.Context, fix leakFix) ([]v1.Leak, error) {
	if fix.fix {
		list, err := answer[v1.LeakList](c.api.RemoveLeaksWithResponse(ctx, &v1.RemoveLeaksParams{WithData: &fix.withData}))
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
