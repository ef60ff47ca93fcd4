package cli

import (
	"context"

	"github.com/spf13/cobra"

	v1 "github.com/roosthq/roost/api/gen/v1"
	"github.com/roosthq/roost/internal/fault"
)

// stillUsed is a template or snapshot that was deleted while others come from it.
type stillUsed struct {
	Name     string `json:"name"`
	Children int    `json:"children"`
}

// named are the requests on templates, or on snapshots, that take a name.
type named struct {
	get func(ctx context.Context, c *client, name string) (v1.Template, error)
	rm  func(ctx context.Context, c *client, name string) error
}

var onTemplates = named{
	get: func(ctx context.Context, c *client, name string) (v1.Template, error) {
		return answer[v1.Template](c.api.GetTemplateWithResponse(ctx, name))
	},
	rm: func(ctx context.Context, c *client, name string) error {
		return settled(c.api.DeleteTemplateWithResponse(ctx, name))
	},
}

var onSnapshots = named{
	get: func(ctx context.Context, c *client, name string) (v1.Template, error) {
		return answer[v1.Template](c.api.GetSnapshotWithResponse(ctx, name))
	},
	rm: func(ctx context.Context, c *client, name string) error {
		return settled(c.api.DeleteSnapshotWithResponse(ctx, name))
	},
}

func (a *app) templateRmCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "rm NAME...",
		Short: "Delete templates",
		Long: `Delete templates that were made with ` + "`roost template create`" + `; those that the host builds itself stay.
Deleting one again is a success. What came from it goes on, and what that needs of its data stays until it ends.`,
		Example: "  roost template rm django",
		Args:    takes("NAME…"),
		RunE:    a.removeNamed(onTemplates),
	}
}

// removeNamed makes the RunE of template rm and snapshot rm.
func (a *app) removeNamed(what named) func(*cobra.Command, []string) error {
	return func(cmd *cobra.Command, args []string) error {
		if err := checkAll(args, checkName); err != nil {
			return usage(cmd, "%s", err.Error())
		}
		return a.run(func(ctx context.Context, c *client, names []string) error {
			out := removal{Deleted: []string{}}
			failed, err := each(ctx, a.json, "deleting", names,
				func(name string) (int, error) { return what.remove(ctx, c, name) },
				func(name string, children int, err error) error { return a.settleRemoval(&out, name, children, err) })
			if err != nil {
				return err
			}
			return a.removed(out, failed)
		})(cmd, args)
	}
}

// remove deletes one and tells how many came from it. One that is gone is deleted all the same:
// a delete that was answered by nobody may be repeated.
func (n named) remove(ctx context.Context, c *client, name string) (children int, err error) {
	found, err := n.get(ctx, c, name)
	if err != nil && !fault.Is(err, fault.NotFound) {
		return 0, err
	}
	if found.Children != nil {
		children = *found.Children
	}
	return children, n.rm(ctx, c, name)
}

func (a *app) settleRemoval(out *removal, name string, children int, err error) error {
	if err != nil {
		out.Failed = append(out.Failed, failedObject{Name: name, Error: apiError(err)})
		return err
	}
	if children > 0 {
		out.InUse = append(out.InUse, stillUsed{name, children})
		a.tell("%s come from %s: they go on, and what they need of its data stays until they end", count(children, "sandbox or snapshot", "sandboxes and snapshots"), name)
	}
	return a.deleted(out, name)
}
