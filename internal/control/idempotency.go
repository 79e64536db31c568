package control

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"

	"github.com/croftproject/croft/api"
	"github.com/croftproject/croft/internal/httpapi"
	"github.com/croftproject/croft/internal/state"
	"github.com/croftproject/croft/internal/store"
)

// remember adds a request's answer to the transaction that it is the answer of.
type remember func(d *draft, answer any)

// once runs a create that has an Idempotency-Key at most once, and gives later requests the same answer. The answer is
// written in the transaction that makes the resource, so its record's revision is that of the resource.
func once[T any](ctx context.Context, c *Control, who httpapi.Caller, k kind, tenant string, request any, meta func(*T) *api.Meta, run func(remember) (*T, error)) (*T, error) {
	if who.Key == "" {
		return run(func(*draft, any) {})
	}
	owner, err := c.tenant(tenant)
	if err != nil {
		return nil, err
	}
	sum := sha256.Sum256([]byte(who.Key))
	key := state.Idempotency + owner.ID + "/" + hex.EncodeToString(sum[:])
	digest := digestOf(k, request)
	if answer, err := replay(ctx, c, key, digest, meta); answer != nil || err != nil {
		return answer, err
	}
	made, err := run(func(d *draft, answer any) {
		body, err := json.Marshal(answer)
		if err != nil {
			panic("encode an answer: " + err.Error())
		}
		d.absent(key)
		put := store.Encode(key, state.Answer{Kind: string(k), Digest: digest, Body: body, Created: c.o.Now().UTC()})
		put.TTL = state.IdempotencyTTL
		d.Puts = append(d.Puts, put)
	})
	if err == nil {
		return made, nil
	}
	// The same request may have been made at the same time, and have won.
	if answer, again := replay(ctx, c, key, digest, meta); answer != nil || again != nil {
		return answer, again
	}
	return nil, err
}

func digestOf(k kind, request any) string {
	data, err := json.Marshal(request)
	if err != nil {
		panic("encode a request: " + err.Error())
	}
	sum := sha256.Sum256(append([]byte(k+"\x00"), data...))
	return hex.EncodeToString(sum[:])
}

func replay[T any](ctx context.Context, c *Control, key, digest string, meta func(*T) *api.Meta) (*T, error) {
	answer, revision, err := store.Get[state.Answer](ctx, c.o.Store, key)
	switch {
	case errors.Is(err, store.ErrNotFound):
		return nil, nil
	case err != nil:
		return nil, unavailable(err)
	case answer.Digest != digest:
		return nil, api.Errorf(api.CodeKeyReused, "the Idempotency-Key was used for another request, at %s; use a new key for each new request", answer.Created.Format("15:04:05"))
	}
	out := new(T)
	if err := json.Unmarshal(answer.Body, out); err != nil {
		return nil, err
	}
	meta(out).Revision = revision
	return out, nil
}
