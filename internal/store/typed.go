package store

import (
	"context"
	"encoding/json"
	"fmt"
)

// Get reads a record and decodes it. It returns the record's revision.
func Get[T any](ctx context.Context, s Store, key string) (*T, int64, error) {
	r, err := s.Get(ctx, key)
	if err != nil {
		return nil, 0, err
	}
	v, err := Decode[T](r)
	return v, r.Revision, err
}

// All lists the records below a prefix, decoded, by key.
func All[T any](ctx context.Context, s Store, prefix string) (map[string]*T, error) {
	records, _, err := s.List(ctx, prefix)
	if err != nil {
		return nil, err
	}
	out := make(map[string]*T, len(records))
	for _, r := range records {
		v, err := Decode[T](r)
		if err != nil {
			return nil, err
		}
		out[r.Key] = v
	}
	return out, nil
}

// Decode decodes a record.
func Decode[T any](r Record) (*T, error) {
	v := new(T)
	if err := json.Unmarshal(r.Value, v); err != nil {
		return nil, fmt.Errorf("record %s at revision %d is damaged: %w", r.Key, r.Revision, err)
	}
	return v, nil
}

// Encode makes a put of a value. Values are of the project's own types, whose encoding can't fail.
func Encode(key string, value any) Put {
	data, err := json.Marshal(value)
	if err != nil {
		panic(fmt.Sprintf("encode %s: %v", key, err))
	}
	return Put{Key: key, Value: data}
}

// Write puts one record, whatever was there. It returns the revision.
func Write(ctx context.Context, s Store, key string, value any) (int64, error) {
	return s.Commit(ctx, Tx{Puts: []Put{Encode(key, value)}})
}
